"""FEED (Park, Kwak, 2019): one student learns the feature maps of several teachers at once.

from reprise.papers.feed import Translator, feed_loss

factors = [Translator(k).apply(p, student_features) for p in translators]  # one a teacher
loss = feed_loss(factors, teacher_factors).mean()  # of Paraphraser(k)'s encode; plus CE
"""

from reprise.papers.feed.layers import Paraphraser, Translator
from reprise.papers.feed.losses import factor_distance, feed_loss, reconstruction_loss

__all__ = ["Paraphraser", "Translator", "factor_distance", "feed_loss", "reconstruction_loss"]
