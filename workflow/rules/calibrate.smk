# Hidden states for gptq. As with the lock, the declared output represents a folder with one file per layer.
rule calibrate:
    input:
        lock=lambda w: entire_lock(w),
        source=ancient(input_path(CHECKPOINT)),
    output:
        output_path(CALIBRATION),
    log:
        "results/logs/calibrate/{model}.log",
    benchmark:
        "results/benchmarks/calibrate/{model}.tsv"
    threads: 4
    resources:
        mem_mb=job_memory("calibrate"),
        runtime=lambda w, attempt: PLAN.model(w).needs("calibrate").minutes * attempt,
    params:
        arguments=lambda w: PLAN.model(w).calibration_arguments,
        lock=lambda w, input: folder_of(input[0]),
        folder=lambda w, output: folder_of(output[0]),
        code=PLAN.calibrate_code,
    shell:
        "axzoo calibrate --lock {params.lock:q} --source {input.source:q} --output {params.folder:q} "
        "{params.arguments:q} > {log:q} 2>&1"


def entire_lock(w):
    """All files of the model's lock after the lock job: each layer's tensors affect the inputs of later layers."""
    build = PLAN.model(w)
    files = locked(*(os.path.basename(file) for file in build.lock_files))(w)
    force([CALIBRATION.format(model=w.model)], COMPARISON.of_calibration(build))
    return files
