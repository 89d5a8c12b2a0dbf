"""Speech: Jasper, Tacotron 2 and WaveGlow.

Sources: Jasper: Li et al. 2019 (arXiv 1904.03288), Table 1 and section 2.2; Tacotron 2: Shen et al.
2017 (arXiv 1712.05884), section 2; WaveGlow: Prenger et al. 2018 (arXiv 1811.00002), section 2.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.reference_models.reference import Batch, Reference, images, numbers, together

# Shapes: B samples, C channels, T frames, L letters, M mel channels, S audio samples

JASPER = (
    *((11, 256, 0.2), (11, 256, 0.2), (13, 384, 0.2), (13, 384, 0.2), (17, 512, 0.2)),
    *((17, 512, 0.2), (21, 640, 0.3), (21, 640, 0.3), (25, 768, 0.3), (25, 768, 0.3)),
)
"""Kernel, channels and dropout of each block: Li et al. 2019, Table 1."""


def normed(inputs: int, outputs: int, size: int, **more: int) -> nn.Sequential:
    """A convolution over time and a batch norm."""
    padding = size // 2 * more.get("dilation", 1)
    return nn.Sequential(
        nn.Conv1d(inputs, outputs, size, padding=padding, bias=False, **more),
        nn.BatchNorm1d(outputs),
    )


class Repeated(nn.Module):
    """Five convolutions; what all blocks before gave is added ahead of the last activation."""

    def __init__(self, ahead: list[int], size: int, outputs: int, dropout: float) -> None:
        super().__init__()
        inputs = (ahead[-1], *[outputs] * 4)
        self.parts = nn.ModuleList(normed(i, outputs, size) for i in inputs)
        self.shortcuts = nn.ModuleList(normed(i, outputs, 1) for i in ahead)
        self.dropout = dropout

    def forward(self, kept: list[torch.Tensor]) -> torch.Tensor:
        x = kept[-1]
        for i, part in enumerate(self.parts):
            x = part(x)
            if i == len(self.parts) - 1:
                for shortcut, before in zip(self.shortcuts, kept, strict=True):
                    x = x + shortcut(before)
            x = F.dropout(F.relu(x), self.dropout, self.training)
        return x


class Jasper(nn.Module):
    """Ten blocks of five convolutions with dense shortcuts, and a head of 29 letters."""

    def __init__(self, mels: int = 64, num_letters: int = 29) -> None:
        super().__init__()
        self.first = normed(mels, 256, 11, stride=2)
        ahead, blocks = [256], list[Repeated]()
        for size, outputs, dropout in JASPER:
            blocks.append(Repeated(list(ahead), size, outputs, dropout))
            ahead.append(outputs)
        self.blocks = nn.ModuleList(blocks)
        self.wide = normed(768, 896, 29, dilation=2)
        self.mixed = normed(896, 1024, 1)
        self.head = nn.Conv1d(1024, num_letters, 1)

    def forward(self, x_BMT: torch.Tensor, target_BL: torch.Tensor) -> torch.Tensor:
        kept = [F.dropout(F.relu(self.first(x_BMT)), 0.2, self.training)]
        for block in self.blocks:
            kept.append(block(kept))
        x = F.dropout(F.relu(self.wide(kept[-1])), 0.4, self.training)
        x = F.dropout(F.relu(self.mixed(x)), 0.4, self.training)
        likely = F.log_softmax(self.head(x), 1)
        return -likely.gather(1, target_BL[:, None, :]).mean()


class Decoder(nn.Module):
    """One mel frame after another: two LSTM cells around attention that knows where it was."""

    def __init__(self, mels: int, memory: int, size: int = 1024) -> None:
        super().__init__()
        self.ahead = nn.Sequential(nn.Linear(mels, 256, False), nn.Linear(256, 256, False))
        self.listen = nn.LSTMCell(256 + memory, size)
        self.speak = nn.LSTMCell(size + memory, size)
        self.query = nn.Linear(size, 128, bias=False)
        self.key = nn.Linear(memory, 128, bias=False)
        self.place = nn.Conv1d(2, 32, 31, padding=15, bias=False)
        self.place_key = nn.Linear(32, 128, bias=False)
        self.score = nn.Linear(128, 1, bias=False)
        self.frame = nn.Linear(size + memory, mels)
        self.stop = nn.Linear(size + memory, 1)

    def forward(self, memory_BLH: torch.Tensor, mel_BMT: torch.Tensor) -> torch.Tensor:
        size, batch = self.listen.hidden_size, len(memory_BLH)
        first = memory_BLH.new_zeros(batch, size)
        heard = said = (first, first)
        context = memory_BLH.new_zeros(batch, memory_BLH.shape[2])
        weight = total = memory_BLH.new_zeros(memory_BLH.shape[:2])
        key = self.key(memory_BLH)
        x = F.pad(mel_BMT, (1, -1)).permute(2, 0, 1)
        for part in self.ahead:
            x = F.dropout(F.relu(part(x)), 0.5)
        frames, stops = [], []
        for step in range(len(x)):
            heard = self.listen(torch.cat([x[step], context], 1), heard)
            drawn = F.dropout(heard[0], 0.1, self.training)
            place = self.place_key(self.place(torch.stack([weight, total], 1)).transpose(1, 2))
            energy = self.score(torch.tanh(self.query(drawn)[:, None] + key + place)).squeeze(2)
            weight = energy.softmax(1)
            total = total + weight
            context = torch.bmm(weight[:, None], memory_BLH).squeeze(1)
            said = self.speak(torch.cat([drawn, context], 1), said)
            spoken = torch.cat([F.dropout(said[0], 0.1, self.training), context], 1)
            frames.append(self.frame(spoken))
            stops.append(self.stop(spoken))
        return torch.cat([torch.stack(frames, 2), torch.stack(stops, 2)], 1)


class Tacotron2(nn.Module):
    """Letters to mel frames: convolutions and an LSTM, the decoder, and five convolutions."""

    def __init__(self, num_letters: int = 148, mels: int = 80, size: int = 512) -> None:
        super().__init__()
        self.letters = nn.Embedding(num_letters, size)
        self.near = nn.Sequential(*(normed(size, size, 5) for _ in range(3)))
        self.read = nn.LSTM(size, size // 2, batch_first=True, bidirectional=True)
        self.decoder = Decoder(mels, size)
        widths = (mels, *[size] * 4, mels)
        self.smooth = nn.Sequential(*(normed(a, b, 5) for a, b in itertools.pairwise(widths)))

    def forward(self, letter_BL: torch.Tensor, mel_BMT: torch.Tensor) -> torch.Tensor:
        x = self.letters(letter_BL).transpose(1, 2)
        for part in self.near:
            x = F.dropout(F.relu(part(x)), 0.5, self.training)
        both = self.decoder(self.read(x.transpose(1, 2))[0], mel_BMT)
        rough, stop = both[:, :-1], both[:, -1]
        x = rough
        for part in self.smooth:
            x = F.dropout(torch.tanh(part(x)), 0.5, self.training)
        off = F.mse_loss(rough, mel_BMT) + F.mse_loss(rough + x, mel_BMT)
        return off + F.binary_cross_entropy_with_logits(stop, torch.zeros_like(stop))


class Coupling(nn.Module):
    """A mix of the channels, and a scale and shift of half of them by the other half."""

    def __init__(self, channels: int, mels: int, size: int = 512, depth: int = 8) -> None:
        super().__init__()
        self.mix = nn.Conv1d(channels, channels, 1, bias=False)
        self.start = nn.Conv1d(channels // 2, size, 1)
        self.dilated = nn.ModuleList(
            nn.Conv1d(size, 2 * size, 3, padding=2**i, dilation=2**i) for i in range(depth)
        )
        self.by_mel = nn.Conv1d(mels, 2 * size * depth, 1)
        widths = [2 * size] * (depth - 1) + [size]
        self.out = nn.ModuleList(nn.Conv1d(size, width, 1) for width in widths)
        self.end = nn.Conv1d(size, channels, 1)
        self.size = size

    def forward(
        self, audio_BCT: torch.Tensor, mel_BMT: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        held, moved = self.mix(audio_BCT).chunk(2, 1)
        x, skipped = self.start(held), torch.zeros_like(held[:, :1])
        given = self.by_mel(mel_BMT).split(2 * self.size, 1)
        for dilated, out, mel in zip(self.dilated, self.out, given, strict=True):
            kept, gate = (dilated(x) + mel).chunk(2, 1)
            y = out(torch.tanh(kept) * torch.sigmoid(gate))
            if y.shape[1] > self.size:
                x = x + y[:, : self.size]
                y = y[:, self.size :]
            skipped = skipped + y
        shift, scale = self.end(skipped).chunk(2, 1)
        return torch.cat([held, torch.exp(scale) * moved + shift], 1), scale


class WaveGlow(nn.Module):
    """Twelve couplings over groups of eight audio samples; every fourth gives two channels away."""

    def __init__(self, mels: int = 80, group: int = 8) -> None:
        super().__init__()
        self.upsample = nn.ConvTranspose1d(mels, mels, 1024, 256)
        self.group = group
        widths = [group - 2 * (i // 4) for i in range(12)]
        self.flows = nn.ModuleList(Coupling(width, mels * group) for width in widths)

    def forward(self, audio_BS: torch.Tensor, mel_BMT: torch.Tensor) -> torch.Tensor:
        mel = self.upsample(mel_BMT)[..., : audio_BS.shape[1]]
        mel = mel.unflatten(2, (-1, self.group)).permute(0, 1, 3, 2).flatten(1, 2)
        audio = audio_BS.unflatten(1, (-1, self.group)).transpose(1, 2)
        total = audio.new_zeros(())
        for i, flow in enumerate(self.flows):
            if i and i % 4 == 0:
                total = total + (audio[:, :2] ** 2).sum()
                audio = audio[:, 2:]
            audio, scale = flow(audio, mel)
            total = total - scale.sum()
        return total + (audio**2).sum()


JASPER_FRAMES = 1680
"""16.7 s in steps of 10 ms, padded to a multiple of 16."""
GUESS_LETTERS, GUESS_FRAMES = 160, 848
"""What a batch of LJSpeech is padded to: about its longest clip, 9.8 of at most 10.1 s."""
MEAN_FRAMES = 566.0
"""6.57 s, the mean clip as LJSpeech's page lists it, in steps of 256 samples at 22,050 Hz."""


def clips(num_samples: int, frames: int) -> Batch:
    """Letters, and so many mel frames."""
    return together(numbers(GUESS_LETTERS), images(80, frames))(num_samples)


REFERENCES = (
    Reference(
        name="jasper10x5",
        varies=True,
        build=Jasper,
        batch=together(images(64, JASPER_FRAMES), numbers(JASPER_FRAMES // 2)),
        source="Li et al. 2019 (arXiv 1904.03288), Table 1, with dense residuals (section 2.2)",
        input="16.7 s as 1,680 frames of 64 mel channels: NVIDIA DeepLearningExamples, Jasper "
        "README; a batch is padded to its longest utterance, of at most 16.7 s",
        num_parameters=333e6,
        figures="333 M: Jasper README, default configuration",
    ),
    Reference(
        name="tacotron2",
        varies=True,
        build=Tacotron2,
        batch=lambda num_samples: clips(num_samples, GUESS_FRAMES),
        source="Shen et al. 2017 (arXiv 1712.05884), section 2.2",
        input=f"LJSpeech, padded in a batch to about {GUESS_LETTERS} letters and {GUESS_FRAMES} "
        "frames of 256 samples at 22,050 Hz; NVIDIA DeepLearningExamples, Tacotron2 README",
        num_parameters=28.2e6,
        figures="28 M: listed with the published runs (dle)",
        tolerance=0.02,
        units={"output mel frames": MEAN_FRAMES},
        stretch=(clips, 8, 16, GUESS_FRAMES),
    ),
    Reference(
        name="waveglow",
        build=WaveGlow,
        batch=together(images(8000), images(80, 32)),
        source="Prenger et al. 2018 (arXiv 1811.00002), section 2, with 512 channels",
        input="segments of 8,000 audio samples: NVIDIA DeepLearningExamples, Tacotron2 README",
        units={"output samples": 8000.0, "audio samples": 8000.0},
    ),
)
