# source.json, the fetch receipt, stands for the checkpoint: the gigabytes beside it are never a dependency.
rule fetch:
    input:
        lambda w: PLAN.model(w).source_files,
    output:
        "results/checkpoints/{model}/source.json",
    log:
        "results/logs/fetch/{model}.log",
    benchmark:
        "results/benchmarks/fetch/{model}.tsv"
    retries: 2
    resources:
        mem_mb=1000,
        runtime=240,
    params:
        source=lambda w: PLAN.model(w).source.arguments,
        folder="results/checkpoints/{model}",
    shell:
        "axzoo fetch {params.source:q} --output {params.folder:q} > {log:q} 2>&1"
