"""DICOM series to stored volumes: instances, their frames, the stacks that these form, and their pixels."""

from medret.volume.dicom.whole_series import open_series
