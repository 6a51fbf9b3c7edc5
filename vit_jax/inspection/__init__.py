"""Looking inside a trained model: Figures 6, 7, 10, 11 and 14.

May import models, data, evaluation, pages and interop.
"""

from vit_jax.inspection.attention import attention_distance, attention_rollout, token_distances
from vit_jax.inspection.embeddings import embedding_filters, filter_components, position_similarity

__all__ = [
    "attention_distance",
    "attention_rollout",
    "embedding_filters",
    "filter_components",
    "position_similarity",
    "token_distances",
]
