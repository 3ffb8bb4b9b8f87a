"""Inception and LPIPS in PyTorch, from state dicts with the released names, as the official code
computes them; and such state dicts with random weights.
"""

import pathlib

import numpy as np
import torch
import torch.nn.functional as F

KEYS = pathlib.Path(__file__).parent / "golden" / "inception" / "keys.tsv"


def inception_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of pytorch-fid's network."""
    rows = (line.split("\t") for line in KEYS.read_text().splitlines())
    return {name: tuple(int(n) for n in shape.split(",")) for name, shape in rows}


def inception_state(seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights that keep activations near one, and norms that are far from the identity."""
    rng = np.random.default_rng(seed)
    state = {}
    for name, shape in inception_shapes().items():
        values = rng.standard_normal(shape)
        if name.endswith("conv.weight"):
            values *= (2 / np.prod(shape[1:])) ** 0.5
        elif name.endswith(("running_var", "bn.weight")):
            values = rng.uniform(0.5, 1.5, shape)
        else:
            values *= 0.2
        state[name] = torch.from_numpy(values.astype(np.float32))
    return state


def inception_features(state: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Features (b, 2048) of pictures (b, 3, h, w) in [-1, 1]."""

    def conv(name, x, stride=1, padding=0):
        norm = [state[f"{name}.bn.{n}"] for n in ("running_mean", "running_var", "weight", "bias")]
        y = F.conv2d(x, state[f"{name}.conv.weight"], stride=stride, padding=padding)
        return F.relu(F.batch_norm(y, *norm, eps=0.001))

    def mean(x):
        return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)

    def most(x):
        return F.max_pool2d(x, 3, stride=1, padding=1)

    def shrink(x):
        return F.max_pool2d(x, 3, stride=2)

    def a(n, x):
        five = conv(f"{n}.branch5x5_2", conv(f"{n}.branch5x5_1", x), padding=2)
        three = conv(f"{n}.branch3x3dbl_2", conv(f"{n}.branch3x3dbl_1", x), padding=1)
        three = conv(f"{n}.branch3x3dbl_3", three, padding=1)
        pooled = conv(f"{n}.branch_pool", mean(x))
        return torch.cat([conv(f"{n}.branch1x1", x), five, three, pooled], 1)

    def b(n, x):
        twice = conv(f"{n}.branch3x3dbl_2", conv(f"{n}.branch3x3dbl_1", x), padding=1)
        twice = conv(f"{n}.branch3x3dbl_3", twice, stride=2)
        return torch.cat([conv(f"{n}.branch3x3", x, stride=2), twice, shrink(x)], 1)

    def c(n, x):
        row, column = {"padding": (0, 3)}, {"padding": (3, 0)}
        once = conv(f"{n}.branch7x7_1", x)
        once = conv(f"{n}.branch7x7_3", conv(f"{n}.branch7x7_2", once, **row), **column)
        twice = conv(f"{n}.branch7x7dbl_1", x)
        for number, padding in ((2, column), (3, row), (4, column), (5, row)):
            twice = conv(f"{n}.branch7x7dbl_{number}", twice, **padding)
        pooled = conv(f"{n}.branch_pool", mean(x))
        return torch.cat([conv(f"{n}.branch1x1", x), once, twice, pooled], 1)

    def d(n, x):
        three = conv(f"{n}.branch3x3_2", conv(f"{n}.branch3x3_1", x), stride=2)
        seven = conv(f"{n}.branch7x7x3_2", conv(f"{n}.branch7x7x3_1", x), padding=(0, 3))
        seven = conv(f"{n}.branch7x7x3_3", seven, padding=(3, 0))
        return torch.cat([three, conv(f"{n}.branch7x7x3_4", seven, stride=2), shrink(x)], 1)

    def e(n, x, pool):
        def cross(stem, y):
            row = conv(f"{n}.{stem}a", y, padding=(0, 1))
            return [row, conv(f"{n}.{stem}b", y, padding=(1, 0))]

        three = cross("branch3x3_2", conv(f"{n}.branch3x3_1", x))
        twice = conv(f"{n}.branch3x3dbl_2", conv(f"{n}.branch3x3dbl_1", x), padding=1)
        pooled = conv(f"{n}.branch_pool", pool(x))
        parts = [conv(f"{n}.branch1x1", x), *three, *cross("branch3x3dbl_3", twice), pooled]
        return torch.cat(parts, 1)

    x = conv("Conv2d_2a_3x3", conv("Conv2d_1a_3x3", x, stride=2))
    x = shrink(conv("Conv2d_2b_3x3", x, padding=1))
    x = shrink(conv("Conv2d_4a_3x3", conv("Conv2d_3b_1x1", x)))
    x = b("Mixed_6a", a("Mixed_5d", a("Mixed_5c", a("Mixed_5b", x))))
    for name in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
        x = c(name, x)
    x = e("Mixed_7c", e("Mixed_7b", d("Mixed_7a", x), mean), most)
    return x.mean((2, 3))


ALEX = [(0, 64, 11, 4, 2), (3, 192, 5, 1, 2), (6, 384, 3, 1, 1), (8, 256, 3, 1, 1)]
ALEX += [(10, 256, 3, 1, 1)]
"""Number, channels, kernel, stride and padding of AlexNet's convolutions."""

VGG = {0: 64, 2: 64, 5: 128, 7: 128, 10: 256, 12: 256, 14: 256, 17: 512, 19: 512, 21: 512}
VGG |= {24: 512, 26: 512, 28: 512}
"""Number and channels of VGG-16's."""


FIRES = {3: (16, 64), 4: (16, 64), 6: (32, 128), 7: (32, 128), 9: (48, 192), 10: (48, 192)}
FIRES |= {11: (64, 256), 12: (64, 256)}
"""Number of SqueezeNet 1.1's modules, and channels: squeezed, and of each of the two branches."""


def _squeezenet() -> list[tuple[str, int, int, int]]:
    """Name, inputs, outputs and kernel of SqueezeNet's convolutions."""
    layers, inputs = [("0", 3, 64, 3)], 64
    for number, (squeezed, each) in FIRES.items():
        layers += [(f"{number}.squeeze", inputs, squeezed, 1)]
        layers += [(f"{number}.expand1x1", squeezed, each, 1)]
        layers += [(f"{number}.expand3x3", squeezed, each, 3)]
        inputs = 2 * each
    return layers


def _one_path(net: str) -> list[tuple[str, int, int, int]]:
    """The same of AlexNet and VGG-16."""
    layers = ALEX if net == "alex" else [(n, width, 3, 1, 1) for n, width in VGG.items()]
    found, inputs = [], 3
    for number, width, kernel, _, _ in layers:
        found.append((str(number), inputs, width, kernel))
        inputs = width
    return found


KEPT = {
    "alex": (64, 192, 384, 256, 256),
    "squeeze": (64, 128, 256, 384, 384, 512, 512),
    "vgg": (64, 128, 256, 512, 512),
}
"""Channels of the layers that LPIPS compares."""


def lpips_state(net: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """Backbone and heads; the heads are not negative, as the released ones."""
    rng = np.random.default_rng(seed)
    state = {}
    for name, inputs, width, kernel in _squeezenet() if net == "squeeze" else _one_path(net):
        shape = (width, inputs, kernel, kernel)
        weight = rng.standard_normal(shape) * (2 / (inputs * kernel**2)) ** 0.5
        state |= {f"features.{name}.weight": weight}
        state |= {f"features.{name}.bias": 0.1 * rng.standard_normal(width)}
    for number, width in enumerate(KEPT[net]):
        state[f"lin{number}.model.1.weight"] = rng.random((1, width, 1, 1))
    return {name: torch.from_numpy(v.astype(np.float32)) for name, v in state.items()}


def lpips_distance(net: str, state: dict[str, torch.Tensor], a: torch.Tensor, b: torch.Tensor):
    """Distances (b,) of pictures (b, 3, h, w) in [-1, 1]."""
    shift = torch.tensor([-0.030, -0.088, -0.188])[None, :, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450])[None, :, None, None]

    def conv(number, x, stride=1, padding=1):
        name = f"features.{number}"
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        return F.relu(F.conv2d(x, weight, bias, stride=stride, padding=padding))

    def maps(x):
        x, found = (x - shift) / scale, []
        if net == "alex":
            for number, _, _, stride, padding in ALEX:
                if number in (3, 6):
                    x = F.max_pool2d(x, 3, stride=2)
                x = conv(number, x, stride, padding)
                found.append(x)
            return found
        if net == "squeeze":
            found.append(x := conv(0, x, stride=2, padding=0))
            for number in FIRES:
                if number in (3, 6, 9):
                    x = F.max_pool2d(x, 3, stride=2, ceil_mode=True)
                x = conv(f"{number}.squeeze", x, padding=0)
                one, three = (
                    conv(f"{number}.expand1x1", x, padding=0),
                    conv(f"{number}.expand3x3", x),
                )
                x = torch.cat([one, three], 1)
                if number not in (3, 6):
                    found.append(x)
            return found
        for number in VGG:
            if number in (5, 10, 17, 24):
                x = F.max_pool2d(x, 2, stride=2)
            x = conv(number, x)
            if number in (2, 7, 14, 21, 28):
                found.append(x)
        return found

    total = 0
    for number, (first, second) in enumerate(zip(maps(a), maps(b), strict=True)):
        first, second = (
            y / (y.square().sum(1, keepdim=True).sqrt() + 1e-10) for y in (first, second)
        )
        head = F.conv2d((first - second) ** 2, state[f"lin{number}.model.1.weight"])
        total = total + head.mean((1, 2, 3))
    return total
