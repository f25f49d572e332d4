"""Datasets: VOC folders, image-level tags, few-mask subsets, stage-2 windows, the samples both stages train on, and
imports of what labelling tools export.
"""

from .coco import import_coco
from .datasets import ClassificationItems, ImageStore, SegmentationItems
from .few import choose_few, few_masks
from .items import classification_item, segmentation_item
from .labelmap import import_label_map
from .tags import read_tags, tags_from_csv, tags_from_masks
from .voc import VocFolder
from .windows import WindowItem, build_items, class_subsets, read_list, write_list

__all__ = [
    "ClassificationItems",
    "ImageStore",
    "SegmentationItems",
    "VocFolder",
    "WindowItem",
    "build_items",
    "choose_few",
    "class_subsets",
    "classification_item",
    "few_masks",
    "import_coco",
    "import_label_map",
    "read_list",
    "read_tags",
    "segmentation_item",
    "tags_from_csv",
    "tags_from_masks",
    "write_list",
]
