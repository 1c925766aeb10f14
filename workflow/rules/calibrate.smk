# What gptq rounds by. As with the lock, one declared file stands for one file per layer.
rule calibrate:
    input:
        lock=lambda w: whole_lock(w),
        source=ancient(read(CHECKPOINT)),
        text=lambda w: beside_the_workflow(PLAN.model(w).calibration_texts),
    output:
        made(CALIBRATION),
    log:
        "results/logs/calibrate/{model}.log",
    benchmark:
        "results/benchmarks/calibrate/{model}.tsv"
    threads: 4
    resources:
        mem_mb=lambda w, attempt: PLAN.model(w).needs("calibrate").mem_mb * attempt,
        runtime=lambda w, attempt: PLAN.model(w).needs("calibrate").minutes * attempt,
    params:
        arguments=lambda w: PLAN.model(w).calibration_arguments,
        lock=lambda w, input: folder_of(input[0]),
        folder=lambda w, output: folder_of(output[0]),
        code=PLAN.calibrate_code,
    shell:
        "axzoo calibrate --lock {params.lock:q} --source {input.source:q} --output {params.folder:q} "
        "{params.arguments:q} > {log:q} 2>&1"


def whole_lock(w):
    """Every file of the model's lock, once the lock has been made: any layer's tensors change what later ones are given."""
    return locked(*(os.path.basename(file) for file in PLAN.model(w).lock_files))(w)
