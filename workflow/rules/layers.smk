rule layer:
    input:
        lock=locked("layer_{layer}.json"),
        source=ancient("results/checkpoints/{model}/source.json"),
        calibration=lambda w: PLAN.build(w).calibration_files,
    output:
        file="results/{chip}/{model}-{tag}/{stem}_l{layer}{together}.axmodel",
        receipt="results/receipts/{chip}/{model}-{tag}/{stem}_l{layer}{together}.json",
    log:
        "results/logs/layer/{chip}/{model}-{tag}/{stem}_l{layer}{together}.log",
    benchmark:
        "results/benchmarks/layer/{chip}/{model}-{tag}/{stem}_l{layer}{together}.tsv"
    wildcard_constraints:
        stem="|".join(map(re.escape, PLAN.stems)),
        together="(_together)?",
    resources:
        mem_mb=lambda w, attempt: PLAN.layer_mem_mb(w) * attempt,
        runtime=lambda w, attempt: 30 * attempt,
    params:
        recipe=lambda w: PLAN.build_with(
            w, f"{w.stem}_l{w.layer}{w.together}.axmodel"
        ).layer_arguments,
        calibration=lambda w: PLAN.build(w).calibration_of(w.layer),
        code=lambda w: PLAN.layer_code(w),
    shell:
        "axzoo layer --lock {input.lock:q} --source {input.source:q} --store results/store "
        "--output {output.file:q} --receipt {output.receipt:q} {params.recipe:q} "
        "{params.calibration:q} > {log:q} 2>&1"
