# The zoo. `snakemake --cores 8` builds config/zoo.yaml; `--configfile FILE` builds another matrix; `demo` builds
# config/demo.yaml. Any single file of results/ is a target too.
from snakemake.utils import min_version

from axzoo.zoo.plan import make_plan

min_version("9.19")


if not workflow.configfiles:

    configfile: "config/zoo.yaml"


PLAN = make_plan(workflow.configfiles, demo="config/demo.yaml")


wildcard_constraints:
    chip="|".join(PLAN.chips),
    model="|".join(PLAN.models),
    tag=r"w\d+a\d+",
    layer=r"\d+",


rule all:
    default_target: True
    input:
        [path for build in PLAN.wanted for path in build.check_files],


rule demo:
    input:
        [path for build in PLAN.demo for path in build.check_files],


localrules:
    all,
    demo,


include: "workflow/rules/fetch.smk"
include: "workflow/rules/lock.smk"
include: "workflow/rules/layers.smk"
include: "workflow/rules/post.smk"
include: "workflow/rules/embed.smk"
include: "workflow/rules/bundle.smk"
include: "workflow/rules/check.smk"
