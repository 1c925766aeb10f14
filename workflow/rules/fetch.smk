# The fetch receipt source.json represents the checkpoint, whose large files are not declared as dependencies.
# No `retries`: `axzoo fetch` resumes interrupted downloads itself, and its other errors are permanent.
rule fetch:
    input:
        lambda w: local_files(PLAN.model(w).source_files),
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
