"""What comes in: data sets, stores, and the order and share in which samples reach a rank."""

from armillary.feeds.order import SampleOrder, mix
from armillary.feeds.share import FeedState, Share

__all__ = ["FeedState", "SampleOrder", "Share", "mix"]
