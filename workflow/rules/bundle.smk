# Receipts say what the compiled files hold; the files themselves must exist, whatever their age: hard links into the
# store share one age among all bundles.
rule bundle:
    input:
        receipts=lambda w: PLAN.build(w).receipt_files,
        files=ancient(lambda w: PLAN.build(w).compiled_files),
        index=locked("index.json"),
        source=ancient("results/checkpoints/{model}/source.json"),
    output:
        manifest="results/{chip}/{model}-{tag}/manifest.json",
        config="results/{chip}/{model}-{tag}/config.json",
        post_config="results/{chip}/{model}-{tag}/post_config.json",
        run="results/{chip}/{model}-{tag}/run.sh",
        tokenizer="results/{chip}/{model}-{tag}/tokenizer/tokenizer.json",
    log:
        "results/logs/bundle/{chip}/{model}-{tag}.log",
    benchmark:
        "results/benchmarks/bundle/{chip}/{model}-{tag}.tsv"
    threads: 2
    resources:
        mem_mb=500,
        runtime=15,
    params:
        recipe=lambda w: PLAN.build(w).bundle_arguments,
        lock="results/locks/{model}",
        folder="results/{chip}/{model}-{tag}",
        code=PLAN.bundle_code,
    shell:
        "axzoo bundle {params.folder:q} --chip {wildcards.chip} --lock {params.lock:q} --source {input.source:q} "
        "--receipts {input.receipts:q} {params.recipe:q} > {log:q} 2>&1"
