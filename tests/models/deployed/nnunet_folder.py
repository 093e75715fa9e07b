"""Result folders of nnU-Net v2, written as its trainer writes them, around small networks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn

CT = {"mean": 40.0, "std": 80.0, "percentile_00_5": -150.0, "percentile_99_5": 250.0}


def network(axes: int, channels: int = 1, k: int = 2, seed: int = 0) -> PlainConvUNet:
    """Return a U-Net of two stages with weights of a seed."""
    torch.manual_seed(seed)
    conv, norm = (nn.Conv2d, nn.InstanceNorm2d) if axes == 2 else (nn.Conv3d, nn.InstanceNorm3d)
    module = PlainConvUNet(
        input_channels=channels,
        n_stages=2,
        features_per_stage=[4, 8],
        conv_op=conv,
        kernel_sizes=[[3] * axes] * 2,
        strides=[[1] * axes, [2] * axes],
        n_conv_per_stage=[1, 1],
        num_classes=k,
        n_conv_per_stage_decoder=[1],
        conv_bias=True,
        norm_op=norm,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=True,
    )
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module.eval()


def architecture(axes: int, *, old: bool = False) -> dict[str, Any]:
    """Return the network of `network` as plans state it, of today or before 2024."""
    kernels, strides = [[3] * axes] * 2, [[1] * axes, [2] * axes]
    if old:
        return {
            "UNet_class_name": "PlainConvUNet",
            "UNet_base_num_features": 4,
            "unet_max_num_features": 8,
            "n_conv_per_stage_encoder": [1, 1],
            "n_conv_per_stage_decoder": [1],
            "num_pool_per_axis": [1] * axes,
            "pool_op_kernel_sizes": strides,
            "conv_kernel_sizes": kernels,
        }
    arguments = {
        "n_stages": 2,
        "features_per_stage": [4, 8],
        "conv_op": f"torch.nn.modules.conv.Conv{axes}d",
        "kernel_sizes": kernels,
        "strides": strides,
        "n_conv_per_stage": [1, 1],
        "n_conv_per_stage_decoder": [1],
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{axes}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    return {
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": arguments,
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        }
    }


def write(
    folder: Path,
    networks: list[nn.Module],
    patch: list[int],
    *,
    schemes: tuple[str, ...] = ("ZScore",),
    masked: bool = False,
    mirror: tuple[int, ...] | None = None,
    labels: dict[str, Any] | None = None,
    order: list[int] | None = None,
    dataset: dict[str, Any] | None = None,
    **plans: Any,  # noqa: ANN401 - entries of plans.json, or of the configuration
) -> Path:
    """Write a result folder with one fold a network, and return it."""
    axes = len(patch)
    name = "2d" if axes == 2 else "3d_fullres"
    configuration = {
        "data_identifier": f"nnUNetPlans_{name}",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": patch,
        "spacing": plans.pop("spacing", [1.0] * axes),
        "normalization_schemes": [f"{scheme}Normalization" for scheme in schemes],
        "use_mask_for_norm": [masked] * len(schemes),
        **{
            f"resampling_fn_{of}": "resample_data_or_seg_to_shape"
            for of in ("data", "seg", "probabilities")
        },
        **{
            f"resampling_fn_{of}_kwargs": {"is_seg": of == "seg", "order": 1, "order_z": 0}
            for of in ("data", "seg", "probabilities")
        },
        "batch_dice": True,
        **architecture(axes, old=plans.pop("old", False)),
        **plans.pop("configuration", {}),
    }
    stated = {
        "dataset_name": "Dataset001_Toy",
        "plans_name": "nnUNetPlans",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "image_reader_writer": "SimpleITKIO" if axes == 3 else "NaturalImage2DIO",
        "configurations": {"base": configuration, name: {"inherits_from": "base"}},
        "foreground_intensity_properties_per_channel": {str(i): CT for i in range(len(schemes))},
        "label_manager": "LabelManager",
        **plans,
    }
    labels = {"background": 0, "organ": 1} if labels is None else labels
    of_dataset: dict[str, Any] = {
        "channel_names": {str(i): f"channel {i}" for i in range(len(schemes))},
        "labels": labels,
        "numTraining": 8,
        "file_ending": ".nii.gz",
        **({} if order is None else {"regions_class_order": order}),
        **(dataset or {}),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plans.json").write_text(json.dumps(stated))
    (folder / "dataset.json").write_text(json.dumps(of_dataset))
    for fold, module in enumerate(networks):
        place = folder / f"fold_{fold}"
        place.mkdir(exist_ok=True)
        losses = {"train_losses": [np.float32(0.5), np.float64(0.25)], "epoch_end": [1.5]}
        content = {
            "network_weights": module.state_dict(),
            "optimizer_state": torch.optim.SGD(module.parameters(), 0.01).state_dict(),
            "grad_scaler_state": None,
            "logging": losses,
            "_best_ema": np.float64(0.5),
            "current_epoch": 1000,
            "init_args": {
                "plans": stated,
                "configuration": name,
                "fold": fold,
                "dataset_json": of_dataset,
                "device": torch.device("cuda"),
            },
            "trainer_name": "nnUNetTrainer",
            "inference_allowed_mirroring_axes": mirror,
        }
        torch.save(content, place / "checkpoint_final.pth")
    return folder
