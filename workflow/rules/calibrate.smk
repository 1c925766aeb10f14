# What gptq rounds by. As with the lock, one declared file stands for one file per layer.
rule calibrate:
    input:
        lock=lambda w: whole_lock(w),
        source=ancient("results/checkpoints/{model}/source.json"),
        text=lambda w: PLAN.model(w).calibration_texts,
    output:
        "results/calibration/{model}/index.json",
    log:
        "results/logs/calibrate/{model}.log",
    benchmark:
        "results/benchmarks/calibrate/{model}.tsv"
    threads: 4
    resources:
        mem_mb=lambda w, attempt: PLAN.model(w).whole_model_mem_mb * attempt,
        runtime=240,
    params:
        arguments=lambda w: PLAN.model(w).calibration_arguments,
        lock="results/locks/{model}",
        folder="results/calibration/{model}",
        code=PLAN.calibrate_code,
    shell:
        "axzoo calibrate --lock {params.lock:q} --source {input.source:q} --output {params.folder:q} "
        "{params.arguments:q} > {log:q} 2>&1"


def whole_lock(w):
    """Every file of the model's lock, once the lock has been made: any layer's tensors change what later ones are given."""
    await_lock(w.model)
    return PLAN.model(w).lock_files
