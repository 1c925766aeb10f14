# A checkpoint in Snakemake's sense: beside the file declared here it writes index.json and a small file for each part,
# and only those that changed. Jobs depend on their part's file, so a changed layer is the only one compiled again.
checkpoint lock:
    input:
        source="results/checkpoints/{model}/source.json",
        model_config=lambda w: PLAN.model(w).model_config_files,
    output:
        "results/locks/{model}/made_from.json",
    log:
        "results/logs/lock/{model}.log",
    benchmark:
        "results/benchmarks/lock/{model}.tsv"
    threads: 4
    resources:
        mem_mb=1000,
        runtime=30,
    params:
        model_type=lambda w: PLAN.model(w).model_type,
        num_hidden_layers=lambda w: PLAN.model(w).num_hidden_layers,
        ignore_config_keys=lambda w: PLAN.model(w).ignore_config_keys,
        model_config=lambda w: PLAN.model(w).model_config_arguments,
        sizes=lambda w: PLAN.model(w).size_arguments,
        folder="results/locks/{model}",
        code=PLAN.lock_code,
    shell:
        "axzoo lock --source {input.source:q} --model_type {params.model_type:q} "
        "--num_hidden_layers {params.num_hidden_layers} --ignore_config_keys {params.ignore_config_keys:q} "
        "{params.model_config:q} {params.sizes:q} --threads {threads} --output {params.folder:q} > {log:q} 2>&1"


@cache  # one answer for all jobs of the model, also after its lock has been made
def may_change(model):
    forced = workflow.dag_settings.forceall or workflow.dag_settings.forcerun
    return forced or not PLAN.is_locked(model)


def await_lock(model):
    """Tells Snakemake that a job waits for the model's lock. Each job that does is planned twice, so none waits for a
    lock that cannot change."""
    if may_change(model):
        checkpoints.lock.get(model=model)


def locked(name):
    """An input function: one file of the model's lock, once the lock has been made."""

    def path(w):
        await_lock(w.model)
        return f"results/locks/{w.model}/{name.format(**w)}"

    return path
