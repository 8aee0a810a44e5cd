"""The form that starts a training. Like the API's schema, it is made from the table of hyperparameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from django import forms

from datasets.models import Dataset
from medseg_site.shared.base.errors import MedSegError
from ml_core.planning.hyperparameters import groups, specs
from ml_core.planning.plan import Plan
from ml_core.planning.spec import Spec, Value
from models_app import services
from models_app.models import SegmentationModel

if TYPE_CHECKING:
    DatasetField = forms.ModelChoiceField[Dataset]
else:
    DatasetField = forms.ModelChoiceField

PLANNED = "Planned from the data"
# So many models, the newest ones, are offered as a warm start.
MAX_MODELS = 200


@dataclass(frozen=True)
class FieldGroup:
    """The fields of one heading. `open` is True when one of them was filled in or is wrong."""

    heading: str
    fields: list[forms.BoundField]
    open: bool


class TrainForm(forms.Form):
    """A name, a dataset, and optional hyperparameters. ml_core checks their limits, for pages and API alike."""

    name = forms.CharField(
        max_length=200, help_text="A training with the name of an earlier one becomes its next version."
    )
    dataset = DatasetField(
        queryset=Dataset.objects.none(),
        empty_label="Choose a dataset",
        error_messages={"invalid_choice": "This dataset is not ready. Choose another one, or wait for its check."},
    )

    def __init__(self, *args: Any, user: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.user = user
        self.model: SegmentationModel | None = None
        ready = Dataset.objects.visible_to(user).filter(status="ready")
        # This field is a ModelChoiceField, which has a queryset.
        self.fields["dataset"].queryset = ready  # type: ignore[attr-defined]
        self.plan: Plan | None = None
        for name, spec in specs().items():
            self.fields[name] = self._warm_start(spec) if name == "warm_start" else _field(spec)
        for name, field in self.fields.items():
            kind = "form-select" if isinstance(field, forms.ChoiceField) else "form-control"
            field.widget.attrs["class"] = kind + (" is-invalid" if self.is_bound and name in self.errors else "")

    def simple_fields(self) -> list[forms.BoundField]:
        return [self["name"], self["dataset"]]

    def advanced_groups(self) -> list[FieldGroup]:
        filled_in = self.hyperparameters() if self.is_bound else {}
        return [
            FieldGroup(
                heading, [self[name] for name in specs], any(name in filled_in or name in self.errors for name in specs)
            )
            for heading, specs in groups().items()
        ]

    def advanced_errors(self) -> dict[str, str]:
        """The errors of the hyperparameters: name → text."""
        return {name: " ".join(map(str, texts)) for name, texts in self.errors.items() if name in specs()}

    def _warm_start(self, spec: Spec) -> forms.Field:
        choices = [(str(model.pk), str(model)) for model in services.usable_models(self.user)[:MAX_MODELS]]
        help_text = "The training starts from the weights of this model, where they fit."
        return forms.ChoiceField(
            label=spec.label, help_text=help_text, required=False, choices=[("", "Random weights"), *choices]
        )

    def hyperparameters(self) -> dict[str, Value]:
        """The hyperparameters that were filled in."""
        values = {name: self.cleaned_data.get(name) for name in specs()}
        return {name: value for name, value in values.items() if value not in (None, "")}

    def clean(self) -> dict[str, Any]:
        """Make the plan too, if there is a dataset. A value that cannot be planned gets an error beside its field."""
        values, dataset = self.hyperparameters(), self.cleaned_data.get("dataset")
        try:
            if dataset:
                self.plan = services.preview_plan(user=self.user, dataset=dataset, hyperparameters=values)
            else:
                services.check_hyperparameters(user=self.user, values=values)
        except services.HyperparametersError as error:
            for name, text in error.fields.items():
                self.add_error(name, text)
        return self.cleaned_data

    def start(self) -> SegmentationModel | None:
        """Queue the training. When the service refuses, return None; the reason then stands beside its field."""
        values = self.cleaned_data
        try:
            return services.create_model(
                user=self.user, name=values["name"], dataset=values["dataset"], hyperparameters=self.hyperparameters()
            )
        except MedSegError as error:
            self.add_error(error.attr if error.attr in self.fields else None, error.detail)
            return None


def _field(spec: Spec) -> forms.Field:
    help_text = spec.help + (f" {_limits(spec)}" if _limits(spec) else "")
    label = f"{spec.label} ({spec.unit})" if spec.unit else spec.label
    if spec.choices:
        return forms.ChoiceField(
            label=label, help_text=help_text, required=False, choices=[("", PLANNED), *_choices(spec)]
        )
    if spec.type is str:
        widget: forms.Widget = forms.TextInput({"placeholder": PLANNED})
        return forms.CharField(label=label, help_text=help_text, required=False, max_length=100, widget=widget)
    attributes = {"placeholder": PLANNED, "inputmode": "decimal" if spec.type is float else "numeric"}
    if spec.type is float:
        return forms.FloatField(
            label=label, help_text=help_text, required=False, widget=forms.NumberInput({**attributes, "step": "any"})
        )
    step = spec.multiple_of or 1
    widget = forms.NumberInput({**attributes, "step": step, "min": spec.minimum, "max": spec.maximum})
    return forms.IntegerField(label=label, help_text=help_text, required=False, widget=widget)


def _choices(spec: Spec) -> list[Any]:
    """The choices as Django wants them: (value, label), or (heading, [(value, label)]) when they are grouped."""
    labels = spec.choices or {}
    if not spec.choice_groups:
        return list(labels.items())
    return [(heading, [(value, labels[value]) for value in values]) for heading, values in spec.choice_groups.items()]


def _limits(spec: Spec) -> str:
    if spec.minimum is None or spec.maximum is None:
        return ""
    multiple = f", a multiple of {spec.multiple_of}" if spec.multiple_of else ""
    return f"{_plain(spec.minimum)} to {_plain(spec.maximum)}{multiple}."


def _plain(number: float) -> str:
    """Write a number with its digits, such as 0.0000001, and not as 1e-07."""
    return f"{number:,.7f}".rstrip("0").rstrip(".")
