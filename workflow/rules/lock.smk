# A Snakemake checkpoint. Besides the declared file it writes index.json and a small file per part, but only if their
# content changed. Each compile job depends on the file of its part, so only changed layers are recompiled.
checkpoint lock:
    input:
        source=input_path(CHECKPOINT),
        compared=compared([LOCK], lambda w: COMPARISON.of_lock(PLAN.model(w))),
    output:
        output_path(LOCK),
    log:
        "results/logs/lock/{model}.log",
    benchmark:
        "results/benchmarks/lock/{model}.tsv"
    threads: 4
    resources:
        mem_mb=job_memory("lock"),
        runtime=lambda w, attempt: PLAN.model(w).needs("lock").minutes * attempt,
    params:
        model_type=lambda w: PLAN.model(w).model_type,
        num_hidden_layers=lambda w: PLAN.model(w).num_hidden_layers,
        ignored=lambda w: PLAN.model(w).ignore_arguments,
        model_config=lambda w: PLAN.model(w).model_config_arguments,
        sizes=lambda w: PLAN.model(w).size_arguments,
        folder=lambda w, output: folder_of(output[0]),
        code=PLAN.lock_code,
    shell:
        "axzoo lock --source {input.source:q} --model_type {params.model_type:q} "
        "--num_hidden_layers {params.num_hidden_layers} {params.ignored:q} "
        "{params.model_config:q} {params.sizes:q} --threads {threads} --output {params.folder:q} > {log:q} 2>&1"


@cache  # the same result for all jobs of the model, even after its lock job has run
def lock_may_change(model):
    forced = workflow.dag_settings.forceall or workflow.dag_settings.forcerun
    return forced or (COMPARES and not PLAN.is_locked(model, COMPARISON))


def await_lock(model):
    """Makes a job depend on the checkpoint `lock`. Snakemake plans such jobs twice, so this is skipped if the lock is up
    to date."""
    if model not in ANNOUNCED:
        announce(PLAN.builds_of(model))
    if lock_may_change(model):
        checkpoints.lock.get(model=model)


def locked(*names):
    """Returns an input function: files of the model's lock after the lock job; with a storage provider, its folder."""

    def paths(w):
        if USES_STORAGE:
            return [input_path(LOCK.format(model=w.model))]
        await_lock(w.model)
        return [f"results/locks/{w.model}/{name.format(**w)}" for name in names]

    return paths


def lock_files(*names):
    """Returns a params function: the paths of the files that `locked` declares as input."""
    return lambda w, input: (
        [f"{input.lock[0]}/{name.format(**w)}" for name in names]
        if USES_STORAGE
        else input.lock
    )
