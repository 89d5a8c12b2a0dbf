"""A stand-in for PBS and PALS, whose programs cannot be had here: qsub, qstat and mpiexec.

It is not PBS: it reads `-l select=` and runs the script at once on this host, with the variables
that ALCF's guides tell of: those of Cray's PMI as on Polaris, or with PMIX=1 those of PMIx as in
the guide to Aurora, which tell a rank no number of ranks. A signal to its mpiexec is not handed on:
nothing says that PALS does.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

QSUB = """#!{python}
import os, re, subprocess, sys
here = os.environ["PBS_STAND_IN"]
script = sys.argv[-1]
nodes = int(re.search(r"^#PBS -l select=(\\d+)", open(script).read(), re.M)[1])
number = str(len([n for n in os.listdir(here) if n.endswith(".nodes")]) + 1) + ".stand-in"
path = os.path.join(here, number + ".nodes")
open(path, "w").writelines(f"x{{i}}\\n" for i in range(nodes))
variables = os.environ | {{"PBS_JOBID": number, "PBS_NODEFILE": path}}
job = subprocess.Popen(["bash", script], env=variables, stdin=subprocess.DEVNULL,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
open(os.path.join(here, number + ".pid"), "w").write(str(job.pid))
print(number)
"""
QSTAT = """#!{python}
import os, sys
try:
    pid = open(os.path.join(os.environ["PBS_STAND_IN"], sys.argv[-1] + ".pid")).read()
    state = open(f"/proc/{{pid}}/stat").read().rpartition(")")[2].split()[0]
except OSError:
    state = "Z"
if state == "Z":
    sys.exit("qstat: Unknown Job Id " + sys.argv[-1])
print("Job Id: " + sys.argv[-1] + "\\n    job_state = R\\n    Resource_List.walltime = 00:10:00")
"""
MPIEXEC = """#!{python}
import os, subprocess, sys
words = sys.argv[1:]
options = {{}}
while words[0].startswith("-"):
    name, equals, value = words.pop(0).partition("=")
    options[name] = value if equals else words.pop(0)
size, local_size = int(options["-n"]), int(options["-ppn"])
ranks = []
for rank in range(size):
    local = rank % local_size  # the stand-in is the launcher: it places ranks so
    variables = dict(PALS_RANKID=rank, PALS_LOCAL_RANKID=local, PALS_NODEID=rank // local_size)
    if os.environ.get("PMIX"):
        variables |= dict(PMIX_RANK=rank)
    else:
        variables |= dict(PMI_RANK=rank, PMI_SIZE=size, PMI_LOCAL_RANK=local,
                          PMI_LOCAL_SIZE=local_size)
    told = {{name: str(value) for name, value in variables.items()}}
    ranks.append(subprocess.Popen(words, env=os.environ | told))
sys.exit(max(rank.wait() for rank in ranks))
"""


def programs(folder: Path) -> dict[str, str]:
    """Variables under which the stand-in's programs are found first; they are kept in `folder`."""
    folder.mkdir()
    for name, text in {"qsub": QSUB, "qstat": QSTAT, "mpiexec": MPIEXEC}.items():
        path = folder / name
        path.write_text(text.format(python=sys.executable))
        path.chmod(0o755)
    return {"PBS_STAND_IN": str(folder), "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
