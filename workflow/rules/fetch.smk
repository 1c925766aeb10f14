# source.json, the fetch receipt, stands for the checkpoint: the gigabytes beside it are never a dependency.
# No `retries`: `axzoo fetch` goes on after a broken connection, and what else it refuses stays refused.
rule fetch:
    input:
        lambda w: beside_the_workflow(PLAN.model(w).source_files),
    output:
        made(CHECKPOINT),
    log:
        "results/logs/fetch/{model}.log",
    benchmark:
        "results/benchmarks/fetch/{model}.tsv"
    resources:
        mem_mb=lambda w, attempt: PLAN.model(w).needs("fetch").mem_mb * attempt,
        runtime=lambda w, attempt: PLAN.model(w).needs("fetch").minutes * attempt,
    params:
        source=lambda w: PLAN.model(w).source.arguments,
        folder=lambda w, output: folder_of(output[0]),
    shell:
        "axzoo fetch {params.source:q} --output {params.folder:q} > {log:q} 2>&1"
