"""Forms of the inference pages. (Uploads go to the API, which shows their progress.)"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django import forms
from django.core.files import File
from django.core.files.storage import default_storage

from inference import services
from inference.models import InferenceResult
from medseg_site.shared.base.errors import MedSegError
from models_app.models import SegmentationModel
from models_app.services import usable_models

if TYPE_CHECKING:
    ModelField = forms.ModelChoiceField[SegmentationModel]
else:
    ModelField = forms.ModelChoiceField


class UsableModelField(ModelField):
    """A choice among the models that have weights, with what helps to choose."""

    def label_from_instance(self, obj: SegmentationModel) -> str:
        dice = obj.metrics.get("dice")
        return f"{obj} · Dice {dice:.3f}" if isinstance(dice, float) else str(obj)


class AgainForm(forms.Form):
    """The same image once more, with a model of choice."""

    model = UsableModelField(queryset=SegmentationModel.objects.none(), empty_label=None, label="Model")

    def __init__(self, *args: Any, user: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.user = user
        self.fields["model"].queryset = usable_models(user)  # type: ignore[attr-defined]  # of a ModelChoiceField
        self.fields["model"].widget.attrs["class"] = "form-select"

    def run(self, earlier: InferenceResult) -> InferenceResult:
        """A new inference of the stored image (and reference). Raises MedSegError, also when the file is gone."""
        image = _stored(earlier.input_image_s3_key, earlier.image_name)
        reference = _stored(earlier.reference_key, earlier.reference_name) if earlier.reference_key else None
        return services.create_inference(user=self.user, model=self.cleaned_data["model"], image=image, mask=reference)


def _stored(key: str, name: str) -> File[Any]:
    try:
        source = default_storage.open(key, "rb")
        return File(source.file, name=name)
    except OSError:
        raise MedSegError("no_object", f"{name} is not in storage any more. Upload it again.") from None
