"""A campaign as a job array: the script that a Slurm cluster runs, one task per job."""

from __future__ import annotations

import shlex
from pathlib import Path

from triforces_deploy.files import replacing
from triforces_deploy.running.campaign import Campaign
from triforces_deploy.running.processes import program

SCRIPT = """\
#!/bin/bash
# Submit with: sbatch {own}. Submitting again goes on with what is not done; add account, partition and time as you need.
#SBATCH --job-name={name}
#SBATCH --array=0-{last}
#SBATCH --ntasks={ranks}
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
# A minute before the time is up the task is asked to stop; its last restart is what counts.
#SBATCH --signal=B:TERM@60
exec {tfdeploy} run --campaign {campaign} --job "$SLURM_ARRAY_TASK_ID"{launcher}
"""


def write_array(path: Path, campaign: Campaign, n_jobs: int, out: Path) -> Path:
    """Write the script.

    Args:
        path: campaign file.
        campaign: what it says.
        n_jobs: how many jobs that makes.
        out: the script.
    """
    text = SCRIPT.format(
        own=out.name,
        name=path.stem,
        last=n_jobs - 1,
        ranks=campaign.ranks,
        tfdeploy=shlex.quote(program("tfdeploy", "PATH")),
        campaign=shlex.quote(str(path.resolve())),
        launcher=' --launcher "srun -n"' if campaign.ranks > 1 else "",
    )
    with replacing(out) as part:
        part.write_text(text)
    return out
