rule post:
    input:
        lock=locked("post.json"),
        source=ancient(read(CHECKPOINT)),
    output:
        file="results/{chip}/{model}-{tag}/{stem}_post.axmodel",
        receipt="results/receipts/{chip}/{model}-{tag}/{stem}_post.json",
    log:
        "results/logs/post/{chip}/{model}-{tag}/{stem}_post.log",
    benchmark:
        "results/benchmarks/post/{chip}/{model}-{tag}/{stem}_post.tsv"
    priority: 1  # the longest job of a small model: layers fill the other cores beside it
    resources:
        mem_mb=lambda w, attempt: PLAN.build(w).post_mem_mb * attempt,
        runtime=lambda w, attempt: PLAN.build(w).minutes("post") * attempt,
    params:
        recipe=lambda w: PLAN.build_with(w, f"{w.stem}_post.axmodel").post_arguments,
        lock=lock_files("post.json"),
        code=PLAN.compile_code,
    shell:
        "axzoo post --lock {params.lock:q} --source {input.source:q} --store {PLAN.store:q} "
        "--output {output.file:q} --receipt {output.receipt:q} {params.recipe:q} > {log:q} 2>&1"
