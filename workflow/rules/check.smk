def bundle_inputs(w):
    """The other files that the checks read. Without a storage provider, the manifest represents them."""
    if not USES_STORAGE:
        return {}
    build = PLAN.build(w)
    return {
        "lock": input_path(LOCK.format(model=w.model)),
        "compiled": build.part_files,
        "completed": completed_files(build),
        "tokenizer": input_path(f"{build.bundle}/tokenizer"),
    }


rule check_layers:
    input:
        unpack(bundle_inputs),
        manifest="results/{chip}/{model}-{tag}/manifest.json",
        source=ancient(input_path(CHECKPOINT)),
    output:
        "results/checks/{chip}/{model}-{tag}/layers.json",
    log:
        "results/checks/{chip}/{model}-{tag}/layers.log",
    benchmark:
        "results/benchmarks/check_layers/{chip}/{model}-{tag}.tsv"
    threads: 4
    resources:
        mem_mb=job_memory("check_layers"),
        runtime=lambda w, attempt: PLAN.build(w).needs("check_layers").minutes * attempt,
    params:
        prompt=lambda w: PLAN.build(w).prompt_arguments,
        limits=lambda w: PLAN.build(w).threshold_arguments,
        lock=lambda w, input: input.get("lock", f"results/locks/{w.model}"),
        folder=lambda w, input: os.path.dirname(input.manifest),
        code=PLAN.check_layers_code,
    shell:
        "axzoo check-layers {params.folder:q} --lock {params.lock:q} --source {input.source:q} "
        "{params.prompt:q} {params.limits:q} --output {output:q} > {log:q} 2>&1"


rule check_generation:
    input:
        unpack(bundle_inputs),
        manifest="results/{chip}/{model}-{tag}/manifest.json",
        source=ancient(input_path(CHECKPOINT)),
    output:
        "results/checks/{chip}/{model}-{tag}/generation.json",
    log:
        "results/checks/{chip}/{model}-{tag}/generation.log",
    benchmark:
        "results/benchmarks/check_generation/{chip}/{model}-{tag}.tsv"
    threads: 4
    resources:
        mem_mb=job_memory("check_generation"),
        runtime=lambda w, attempt: PLAN.build(w).needs("check_generation").minutes
        * attempt,
    params:
        prompt=lambda w: PLAN.build(w).prompt_arguments,
        limits=lambda w: PLAN.build(w).threshold_arguments,
        expect=lambda w: PLAN.build(w).expect_arguments,
        lock=lambda w, input: input.get("lock", f"results/locks/{w.model}"),
        folder=lambda w, input: os.path.dirname(input.manifest),
        code=PLAN.check_generation_code,
    shell:
        "axzoo check-generation {params.folder:q} --lock {params.lock:q} --source {input.source:q} "
        "{params.prompt:q} {params.limits:q} {params.expect:q} --output {output:q} > {log:q} 2>&1"


rule check_vision:
    input:
        unpack(bundle_inputs),
        manifest="results/{chip}/{model}-{tag}/manifest.json",
        source=ancient(input_path(CHECKPOINT)),
    output:
        "results/checks/{chip}/{model}-{tag}/vision.json",
    log:
        "results/checks/{chip}/{model}-{tag}/vision.log",
    benchmark:
        "results/benchmarks/check_vision/{chip}/{model}-{tag}.tsv"
    threads: 4
    resources:
        mem_mb=job_memory("check_vision"),
        runtime=lambda w, attempt: PLAN.build(w).needs("check_vision").minutes * attempt,
    params:
        lock=lambda w, input: input.get("lock", f"results/locks/{w.model}"),
        folder=lambda w, input: os.path.dirname(input.manifest),
        code=PLAN.check_vision_code,
    shell:
        "axzoo check-vision {params.folder:q} --lock {params.lock:q} --source {input.source:q} "
        "--output {output:q} > {log:q} 2>&1"


rule check_weights:
    input:
        unpack(bundle_inputs),
        manifest="results/{chip}/{model}-{tag}/manifest.json",
        source=ancient(input_path(CHECKPOINT)),
    output:
        "results/checks/{chip}/{model}-{tag}/weights.json",
    log:
        "results/checks/{chip}/{model}-{tag}/weights.log",
    benchmark:
        "results/benchmarks/check_weights/{chip}/{model}-{tag}.tsv"
    resources:
        mem_mb=job_memory("check_weights"),
        runtime=lambda w, attempt: PLAN.build(w).needs("check_weights").minutes
        * attempt,
    params:
        lock=lambda w, input: input.get("lock", f"results/locks/{w.model}"),
        folder=lambda w, input: os.path.dirname(input.manifest),
        code=PLAN.check_weights_code,
    shell:
        "axzoo check-weights {params.folder:q} --lock {params.lock:q} --source {input.source:q} "
        "--output {output:q} > {log:q} 2>&1"
