"""Texts "spoken" as a tone per letter, so that a tiny model learns to speak them, and what tests of such models share."""

import base64
import io
from dataclasses import dataclass
from random import Random

import numpy as np
import soundfile

from lc_ray.models.batches import TARGET, prepare
from lc_ray.spec import InputSpec

SLOT = 0.128  # seconds per letter: 8 frames of 16 ms


def samples_of(answer):
    """An answer's sound, and samples per second."""
    kind, _, content = answer["audio"].partition(";base64,")
    assert kind == "data:audio/wav"
    return soundfile.read(io.BytesIO(base64.b64decode(content)))


@dataclass(frozen=True)
class Voice:
    """Who says each letter at its own pitch, in Hz."""

    rate: int
    pitch: dict[str, float]

    def spoken(self, text):
        """A text as WAV."""
        time = np.arange(int(self.rate * SLOT)) / self.rate
        samples = np.concatenate([np.sin(2 * np.pi * self.pitch[letter] * time) * np.hanning(len(time)) for letter in text])
        file = io.BytesIO()
        soundfile.write(file, 0.6 * samples, self.rate, format="WAV")
        return file.getvalue()

    def heard(self, answer):
        """The letters of an answer: the strongest tone of each slot."""
        samples, rate = samples_of(answer)
        assert rate == self.rate
        size, found = int(rate * SLOT), ""
        for start in range(0, round(len(samples) / size) * size, size):
            piece = samples[start : start + size]
            power = np.abs(np.fft.rfft(piece * np.hanning(len(piece))))
            strongest = np.fft.rfftfreq(len(piece), 1 / rate)[power.argmax()]
            found += min(self.pitch, key=lambda letter: abs(np.log(max(strongest, 1) / self.pitch[letter])))
        return found

    def right(self, answers, wanted):
        """How many letters are. By chance it is a quarter."""
        pairs = [(a, b) for one, text in zip(answers, wanted, strict=True) for a, b in zip(self.heard(one).ljust(len(text)), text, strict=False)]
        return np.mean([a == b for a, b in pairs])

    def rows(self, chosen, columns, task):
        return prepare({"text": chosen}, columns) | {TARGET: [task.read(self.spoken(text), None, task) for text in chosen]}


def column(base, **fields):
    return InputSpec(column="text", base=str(base), **{"max_length": 16, "weights": "pretrained", "optional": False} | fields)


def texts(count, seed):
    """Different ones of two to four letters, in any order."""
    random = Random(seed)
    found = sorted({"".join(random.choices("abcd", k=random.randint(2, 4))) for _ in range(count)})
    Random(1).shuffle(found)
    return found


def turned(chosen):
    """For each text the place of another one that is as long, where there is one."""
    lengths, found = {}, list(range(len(chosen)))
    for number, text in enumerate(chosen):
        lengths.setdefault(len(text), []).append(number)
    for numbers in lengths.values():
        for one, other in zip(numbers, numbers[1:] + numbers[:1], strict=True):
            found[one] = other
    return found
