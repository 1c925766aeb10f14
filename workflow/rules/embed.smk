rule embed:
    input:
        lock=locked("embed.json"),
        source=ancient(read(CHECKPOINT)),
    output:
        file="results/{chip}/{model}-{tag}/model.embed_tokens.weight.bfloat16.bin",
        receipt="results/receipts/{chip}/{model}-{tag}/model.embed_tokens.weight.bfloat16.json",
    log:
        "results/logs/embed/{chip}/{model}-{tag}.log",
    benchmark:
        "results/benchmarks/embed/{chip}/{model}-{tag}.tsv"
    resources:
        mem_mb=lambda w, attempt: 1000 * attempt,
        runtime=lambda w, attempt: PLAN.build(w).minutes("embed") * attempt,
    params:
        lock=lock_files("embed.json"),
        code=PLAN.embed_code,
    shell:
        "axzoo embed --lock {params.lock:q} --source {input.source:q} --store {PLAN.store:q} "
        "--output {output.file:q} --receipt {output.receipt:q} > {log:q} 2>&1"
