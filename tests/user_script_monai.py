"""What a user of MONAI writes at the end of a training.

It is run as it stands, and with the one import changed to `medviz.visualize`; its argument is a folder to write to.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from monai.networks.nets import DenseNet121
from monai.visualize import (
    CAM,
    GradCAM,
    GradCAMpp,
    GuidedBackpropGrad,
    GuidedBackpropSmoothGrad,
    ModelWithHooks,
    OcclusionSensitivity,
    SmoothGrad,
    VanillaGrad,
    add_animated_gif,
    blend_images,
    default_normalizer,
    make_animated_gif_summary,
    matshow3d,
    plot_2d_or_3d_image,
)
from torch import nn
from torch.utils.tensorboard import SummaryWriter

OUT = Path(sys.argv[1] if len(sys.argv) > 1 else ".")


def say(*values: object) -> None:
    sys.stdout.write(" ".join(map(str, values)) + "\n")


def main() -> None:
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = DenseNet121(
        spatial_dims=2, in_channels=1, out_channels=3, init_features=8, growth_rate=4, block_config=(2, 2, 2, 2)
    ).to(device)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    loss_function = nn.CrossEntropyLoss()
    images = torch.rand(4, 1, 64, 64, device=device)
    labels = torch.tensor([0, 1, 2, 0], device=device)
    writer = SummaryWriter(OUT / "runs")

    for epoch in range(2):
        model.train()
        optimizer.zero_grad()
        loss = loss_function(model(images), labels)
        loss.backward()
        optimizer.step()
        writer.add_scalar("loss", loss.item(), epoch)

        # a look at the network in the middle of the training
        model.eval()
        cam = GradCAM(nn_module=model, target_layers="class_layers.relu")
        result = cam(x=images[:1], class_idx=0)
        assert result.shape == (1, 1, 64, 64)
        plot_2d_or_3d_image(result, step=epoch, writer=writer, index=0, tag="gradcam")
        model.train()

    model.eval()
    x = images[1:2].clone()
    with torch.no_grad():
        predicted = model(x).argmax(1).item()

    # class activation maps
    for name, _ in model.named_modules():
        if name == "class_layers.relu":
            break
    else:
        raise RuntimeError("no such layer")
    cam = CAM(nn_module=model, target_layers=name, fc_layers="class_layers.out")
    say("feature map", tuple(cam.feature_map_size([1, 1, 64, 64], device=device)))
    cam_result = cam(x=x)
    gradcam = GradCAM(nn_module=model, target_layers=name, postprocessing=lambda m: m)
    say("class", gradcam(x, class_idx=predicted).max().item() >= 0, gradcam.nn_module.class_idx == predicted)
    say("raw map", tuple(gradcam.compute_map(x, class_idx=predicted, layer_idx=-1).shape))
    gradcampp = GradCAMpp(nn_module=model, target_layers=name)
    campp_result = gradcampp(x, class_idx=predicted)
    say("layer", type(gradcam.nn_module.get_layer("class_layers.out")).__name__)
    wrapped = ModelWithHooks(model, "features", register_forward=True, register_backward=True)
    logits, acti, grad = wrapped(x, class_idx=predicted)
    say("hooks", tuple(logits.shape), acti[-1].shape == grad[-1].shape)
    flipped = default_normalizer(acti[-1].detach())
    say("normalised", flipped.min().item(), flipped.max().item())

    # occlusion
    occ_sens = OcclusionSensitivity(nn_module=model, mask_size=16, n_batch=10, verbose=False)
    occ_map, most_probable_class = occ_sens(x, b_box=[16, 47, 16, 47])
    say("occlusion", occ_map.ndim, most_probable_class.min().item() >= 0)
    constant = OcclusionSensitivity(model, 16, 10, False, mode=0.5, overlap=0.25)
    say("occlusion by a constant", constant(x)[0].min().item() >= 0)

    # gradients
    for method in (
        VanillaGrad(model),
        SmoothGrad(model, n_samples=4, verbose=False),
        GuidedBackpropGrad(model),
        GuidedBackpropSmoothGrad(model, n_samples=4, magnitude=False, verbose=False),
    ):
        saliency = method(x.clone(), index=predicted)
        say(type(method).__name__, tuple(saliency.shape), bool(torch.isfinite(saliency).all()))

    # pictures
    blended = blend_images(x[0], cam_result[0], alpha=0.5, cmap="jet", rescale_arrays=True)
    say("blended", tuple(blended.shape))
    blended = blend_images(x[0].cpu().numpy(), campp_result[0].cpu().numpy(), alpha=0.3, cmap="hot")
    say("blended array", blended.shape, blended.dtype)
    volume = np.random.default_rng(0).random((12, 10, 8))
    fig, sheet = matshow3d(volume, title="volume", figsize=(4, 4), frames_per_row=4, every_n=2)
    fig.savefig(OUT / "volume.png")
    say("sheet", sheet.shape)

    # TensorBoard
    scan = torch.rand(2, 1, 12, 10, 8)
    plot_2d_or_3d_image(scan, step=1, writer=writer, index=1, frame_dim=-1, tag="scan")
    plot_2d_or_3d_image([scan[0], scan[1]], step=1, writer=writer, tag="list")
    add_animated_gif(writer, "gif", scan[0], max_out=1, frame_dim=-3, scale_factor=255, global_step=1)
    for summary in make_animated_gif_summary("summary", scan[0].numpy(), max_out=1, scale_factor=255):
        say("summary", summary.value[0].tag)
    writer.close()

    model.train()
    optimizer.zero_grad()
    loss_function(model(images), labels).backward()
    optimizer.step()
    say("still training", all(module.training for module in model.modules()))


if __name__ == "__main__":
    main()
