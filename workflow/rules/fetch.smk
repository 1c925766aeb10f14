# The fetch receipt source.json represents the checkpoint. Its files are compared with the receipt instead of being
# declared: Snakemake overlooks older ones, and refuses outputs that are older than an input dated ahead.
# No `retries`: `axzoo fetch` resumes interrupted downloads itself, and its other errors are permanent.
rule fetch:
    input:
        compared([CHECKPOINT], lambda w: COMPARISON.of_checkpoint(PLAN.model(w))),
    output:
        output_path(CHECKPOINT),
    log:
        "results/logs/fetch/{model}.log",
    benchmark:
        "results/benchmarks/fetch/{model}.tsv"
    resources:
        mem_mb=job_memory("fetch"),
        runtime=lambda w, attempt: PLAN.model(w).needs("fetch").minutes * attempt,
    params:
        source=lambda w: PLAN.model(w).source.arguments,
        folder=lambda w, output: folder_of(output[0]),
    shell:
        "axzoo fetch {params.source:q} --output {params.folder:q} > {log:q} 2>&1"
