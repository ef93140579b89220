"""Sums over neighbours of which only the element is known, with the mixing of radial functions behind the sum.

Where what atom j sends, h_c(Z_j), and the mixing W of hidden radial functions g do not depend on the edge, both leave the sum:

    Σ_j Y_lm(r_ij) h_c(Z_j) Σ_k W_lck g_k(r_ij) = Σ_Z Σ_k h_c(Z) W_lck [Σ_{j of Z} Y_lm(r_ij) g_k(r_ij)]

Edges then make rows as wide as there are hidden functions and elements, and the wide products are taken once per atom.
"""

from __future__ import annotations

from torch import Tensor

from triforces_deploy.nn.equivariant import of_degree

MOST = 4
"""Elements times hidden functions per channel up to which this is the faster way."""


def pays(n_elements: int, n_hidden: int, channels: int) -> bool:
    """Whether the sums are narrow enough."""
    return n_elements * n_hidden <= MOST * channels


def terms(harmonics: Tensor, hidden: Tensor, elements: Tensor) -> Tensor:
    """Y ⊗ one-hot element ⊗ g: (E, (l_max+1)²), (E, H) and (E, n_elements) → (E, (l_max+1)², n_elements · H)."""
    by_element = (elements[:, :, None] * hidden[:, None]).flatten(1)
    return harmonics[:, :, None] * by_element[:, None]


def mixed(sums: Tensor, features: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    """What the sums of messages are.

    Args:
        sums: (N, (l_max+1)², n_elements · H) of :func:`terms`.
        features: h, (n_elements, K).
        weight: W, ((l_max+1) · K, H), degrees one after another.

    Returns:
        For each degree (N, 2l+1, K).
    """
    of_degrees = weight.unflatten(0, (-1, features.shape[1])).transpose(1, 2)
    both = (of_degrees[:, None] * features[:, None]).flatten(1, 2)  # (l_max+1, n_elements · H, K)
    return tuple(sums[:, of_degree(degree)] @ w for degree, w in enumerate(both.unbind(0)))
