"""Host crystals, and defects in supercells of up to a hundred million atoms.

``hosts`` knows crystals and ``crystals`` makes supercells of them, ``extended`` those with a boundary or dislocations;
``kinds`` knows what each defect does to its neighbourhood, ``requests`` reads their names, ``placing`` puts many at random
places, ``single`` puts one, ``building`` does all of it for `tfdeploy defect` and ``files`` writes what comes out.
"""

from triforces_deploy.defects.building import defective as defective
from triforces_deploy.defects.crystals import supercell_of as supercell_of
from triforces_deploy.defects.holes import SITES as SITES
from triforces_deploy.defects.holes import Site as Site
from triforces_deploy.defects.hosts import HOSTS as HOSTS
from triforces_deploy.defects.single import Maker as Maker
from triforces_deploy.defects.single import Near as Near
from triforces_deploy.defects.single import antisite as antisite
from triforces_deploy.defects.single import interstitial as interstitial
from triforces_deploy.defects.single import pair as pair
from triforces_deploy.defects.single import substitution as substitution
from triforces_deploy.defects.single import vacancy as vacancy
