# One rule for each batch of parts that share a job: `layer`, `post` and `embed` build one part, layers_<first>_<last>
# several layers. Which parts a model has, what they are called and what they need is the part kinds' business.
def locked_parts(rule):
    """An input function: the parts' locks, once the lock has been made. Refuses files that the build does not have."""

    def paths(w):
        for file in rule.files:
            PLAN.build_with(w, file.format(**w))
        return locked(*rule.locks)(w)

    return paths


def calibrated(rule):
    """An input function: what a calibrated rounding needs; nothing for other builds."""

    def paths(w):
        needed = rule.kind.is_calibrated(PLAN.build(w).recipe)
        return CALIBRATION.format(model=w.model) if needed else []

    return paths


def of_kind(kind, value):
    """A param: what `value` says of the build's parts of a kind."""
    return lambda w: value(PLAN.build(w), kind)


def needed_by(rule, what):
    """A resource: mem_mb or minutes of a job."""
    return (
        lambda w, attempt: getattr(
            PLAN.build(w).needs(rule.kind.name, rule.parts), what
        )
        * attempt
    )


for part_rule in PLAN.part_rules:

    rule:
        name:
            part_rule.name
        input:
            lock=locked_parts(part_rule),
            source=ancient(read(CHECKPOINT)),
            calibration=calibrated(part_rule),
        output:
            files=expand(
                "results/{{chip}}/{{model}}-{{tag}}/{file}", file=part_rule.files
            ),
            receipts=expand(
                "results/receipts/{{chip}}/{{model}}-{{tag}}/{receipt}",
                receipt=part_rule.receipts,
            ),
        log:
            f"results/logs/{part_rule.kind.name}/{{chip}}/{{model}}-{{tag}}/{part_rule.log_name}.log",
        benchmark:
            f"results/benchmarks/{part_rule.kind.name}/{{chip}}/{{model}}-{{tag}}/{part_rule.log_name}.tsv"
        wildcard_constraints:
            model="|".join(map(re.escape, part_rule.models)),
        priority: part_rule.kind.priority
        resources:
            mem_mb=needed_by(part_rule, "mem_mb"),
            runtime=needed_by(part_rule, "minutes"),
        params:
            recipe=of_kind(part_rule.kind, lambda build, kind: build.choices(kind)),
            backend=lambda w: PLAN.build(w).backend_name,
            store=PLAN.store,
            # Not an argument: a changed compiler makes the job run again.
            compiler=of_kind(part_rule.kind, lambda build, kind: build.compiler(kind)),
            calibration=lambda w, input: (
                ["--calibration", folder_of(input.calibration)]
                if input.calibration
                else []
            ),
            lock=lock_files(*part_rule.locks),
        shell:
            "axzoo compile --lock {params.lock:q} --source {input.source:q} --store {params.store:q} "
            "--output {output.files:q} --receipt {output.receipts:q} --chip {wildcards.chip} "
            "--backend {params.backend:q} --recipe {params.recipe:q} {params.calibration:q} > {log:q} 2>&1"
