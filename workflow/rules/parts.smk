# One rule per batch of parts: `layer`, `post` and `embed` build one part per job, layers_<first>_<last> several layers.
# The part kinds (src/axzoo/parts/kinds) define the parts of a model, their names and their resources.
def locked_parts(rule):
    """Returns an input function: the lock files of the parts after the lock job. Raises AxzooError for files that are
    not part of the build."""

    def paths(w):
        names = [file.format(**w) for file in rule.files]
        build = [PLAN.build_with(w, name) for name in names][0]
        lock = locked(*rule.locks)(w)
        force(
            [f"{build.bundle}/{name}" for name in names],
            COMPARISON.of_parts(build, names),
        )
        return lock

    return paths


def calibrated(rule):
    """Returns an input function: the calibration if the recipe's rounding needs it."""

    def paths(w):
        needed = rule.kind.is_calibrated(PLAN.build(w).recipe)
        return CALIBRATION.format(model=w.model) if needed else []

    return paths


def kind_param(kind, value):
    """Returns a params function: `value` of the build and the part kind."""
    return lambda w: value(PLAN.build(w), kind)


def job_minutes(rule):
    """Returns a resource function: the time limit of a job."""
    return (
        lambda w, attempt: PLAN.build(w).needs(rule.kind.name, rule.parts).minutes
        * attempt
    )


for part_rule in PLAN.part_rules:

    rule:
        name:
            part_rule.name
        input:
            lock=locked_parts(part_rule),
            source=ancient(input_path(CHECKPOINT)),
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
            mem_mb=job_memory(part_rule.kind.name, part_rule.parts),
            runtime=job_minutes(part_rule),
        params:
            recipe=kind_param(part_rule.kind, lambda build, kind: build.choices(kind)),
            backend=lambda w: PLAN.build(w).backend_arguments,
            store=PLAN.store,
            # Not used in the command: reruns the job when the compiler changes.
            compiler=kind_param(
                part_rule.kind, lambda build, kind: build.compiler(kind)
            ),
            calibration=lambda w, input: (
                ["--calibration", folder_of(input.calibration)]
                if input.calibration
                else []
            ),
            lock=lock_files(*part_rule.locks),
        shell:
            "axzoo compile --lock {params.lock:q} --source {input.source:q} --store {params.store:q} "
            "--output {output.files:q} --receipt {output.receipts:q} --chip {wildcards.chip} "
            "{params.backend:q} --recipe {params.recipe:q} {params.calibration:q} > {log:q} 2>&1"
