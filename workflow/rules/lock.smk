# A checkpoint in Snakemake's sense: beside the file declared here it writes index.json and a small file for each part,
# and only those that changed. Jobs depend on their part's file, so a changed layer is the only one compiled again.
checkpoint lock:
    input:
        source=read(CHECKPOINT),
        model_config=lambda w: beside_the_workflow(PLAN.model(w).model_config_files),
    output:
        made(LOCK),
    log:
        "results/logs/lock/{model}.log",
    benchmark:
        "results/benchmarks/lock/{model}.tsv"
    threads: 4
    resources:
        mem_mb=lambda w, attempt: PLAN.model(w).needs("lock").mem_mb * attempt,
        runtime=lambda w, attempt: PLAN.model(w).needs("lock").minutes * attempt,
    params:
        model_type=lambda w: PLAN.model(w).model_type,
        num_hidden_layers=lambda w: PLAN.model(w).num_hidden_layers,
        ignore_config_keys=lambda w: PLAN.model(w).ignore_config_keys,
        model_config=lambda w: PLAN.model(w).model_config_arguments,
        sizes=lambda w: PLAN.model(w).size_arguments,
        folder=lambda w, output: folder_of(output[0]),
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


def locked(*names):
    """An input function: files of the model's lock, once the lock has been made; or the folder they are in."""

    def paths(w):
        if STORED:
            return [read(LOCK.format(model=w.model))]
        await_lock(w.model)
        return [f"results/locks/{w.model}/{name.format(**w)}" for name in names]

    return paths


def lock_files(*names):
    """A param: the files that `locked` is an input for."""
    return lambda w, input: (
        [f"{input.lock[0]}/{name.format(**w)}" for name in names]
        if STORED
        else input.lock
    )
