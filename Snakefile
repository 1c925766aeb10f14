# The zoo. `snakemake --cores 8` builds config/zoo.yaml; `--configfile FILE` builds another matrix; `demo` builds
# config/demo.yaml. Any single file of results/ is a target too.
import re

from snakemake.exceptions import WorkflowError
from snakemake.utils import min_version

from axzoo.errors import AxzooError
from axzoo.zoo.plan import make_plan

min_version("9.19")

if workflow.config_settings.config:
    raise WorkflowError(
        "--config is not read here: write a matrix file and name it with --configfile"
    )

# Not Snakemake's `configfile:`: axzoo's own reader names the line of whatever is wrong.
try:
    PLAN = make_plan(
        workflow.configfiles or ["config/zoo.yaml"], demo="config/demo.yaml"
    )
except AxzooError as error:
    raise WorkflowError(str(error)) from None


wildcard_constraints:
    chip="|".join(map(re.escape, PLAN.chips)),
    model="|".join(map(re.escape, PLAN.models)),
    tag=r"w\d+f?a\d+f?",
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
