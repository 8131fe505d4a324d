"""The augmentation between the two views of an image, and its record: :class:`CropFlip`, :class:`RandomCropFlip`.

CGC (Pillai et al., CVPR 2022) compares the heatmap of T(x) with T applied to the heatmap of x, so the T that made the
augmented view has to travel with it. Here T is crop, bilinear resize back to the size of the view, horizontal flip or
not. The flip is recorded exactly when it was made; the authors' released code also records one in half of the cases
where it made none, which mismatches a quarter of its positives.

From the bottom up: ``checks``; ``cropping``, which moves pixels; ``crop_flip``, the record; ``random_crop_flip``, which
draws it.
"""

from .checks import check_structure, check_values
from .crop_flip import CropFlip
from .random_crop_flip import RandomCropFlip

__all__ = ["CropFlip", "RandomCropFlip", "check_structure", "check_values"]

# Pickles name the public place.
CropFlip.__module__ = RandomCropFlip.__module__ = __name__
