r"""
1. The contrast transfer function seen eight ways
=================================================

A microscope does not show the object :math:`A` but :math:`X = C A` (in Fourier space), with

.. math:: C(k) = \sin\left(\pi \lambda \Delta z k^2 - \frac{\pi}{2} C_s \lambda^3 k^4
          + \arcsin Q_0\right).

In real space the same thing is a convolution with the point spread function, the inverse transform
of :math:`C`. The lecture shows it in eight pictures, four in real space and four in Fourier space;
here they are for three defoci. The dark rings of the power spectrum are where :math:`C = 0`.
"""

import os

import matplotlib.pyplot as plt
import torch

from halfmap.plots.panels import show_images
from halfmap.transfer_function import CTFParameters, ctf

BOX = 64 if os.environ.get("HALFMAP_GALLERY") == "small" else 192
PIXEL_ANGSTROM = 2.0

# %%
# A random object: white noise, so that every frequency is there, under a soft edge.
axis = torch.arange(BOX) - BOX // 2
radius = (axis[:, None] ** 2 + axis[None, :] ** 2).sqrt()
noise = torch.randn(BOX, BOX, generator=torch.Generator().manual_seed(1))
object_ = torch.sigmoid((0.3 * BOX - radius) / 1.5) * noise


def transform(image):
    return torch.fft.fftshift(torch.fft.fft2(torch.fft.ifftshift(image)))


def back(samples):
    return torch.fft.fftshift(torch.fft.ifft2(torch.fft.ifftshift(samples))).real


# %%
# :math:`C` at all frequencies of the image's transform, and what it makes of the object.
k = axis / (BOX * PIXEL_ANGSTROM)
ky, kx = torch.meshgrid(k, k, indexing="ij")
FIRST = ("object $A$", "point spread (middle)", "image $X$", "autocorrelation (middle)")
SECOND = ("|FT| of the object", "CTF $C$", "|FT| of the image", "log power spectrum")
part = slice(BOX // 4, 3 * BOX // 4)
zeros = {}
for defocus_um in (0.3, 0.6, 1.2):
    defocus = 10_000 * defocus_um
    optics = CTFParameters(defocus_u_angstrom=defocus, defocus_v_angstrom=defocus)
    c = ctf(optics, kx.flatten(), ky.flatten()).view(BOX, BOX)  # C(k)
    a = transform(object_)
    x = c * a  # X = C A
    correlation = back(x.abs() ** 2)
    correlation[radius == 0] = 0.0  # far above everything else, it would leave all of it grey
    spectra = [a.abs(), c, x.abs(), (x.abs() ** 2).clamp(min=1).log()]
    show_images(
        [object_, back(c)[part, part], back(x), correlation[part, part], *spectra],
        FIRST + SECOND,
        columns=4,
        title=f"defocus {defocus_um} µm",
        pixel_size_angstrom=PIXEL_ANGSTROM,
    )
    along = c[BOX // 2, BOX // 2 :]
    zeros[defocus_um] = int((along[1:] * along[:-1] < 0).sum())
plt.show()

# %%
# The farther from focus, the more rings: zeros of :math:`C` from the centre to Nyquist.
print(zeros)
assert zeros[0.3] < zeros[0.6] < zeros[1.2]
