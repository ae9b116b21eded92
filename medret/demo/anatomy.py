"""Six synthetic subjects: what each looks like in the image of its modality.

Each function paints one subject onto a canvas, in Hounsfield units for CT and in arbitrary units (0 dark .. 1 bright)
for MRI. They are cartoons: the right organs have about the right place, size and grey value. That is enough to try out
a retrieval system, but not to judge one.
"""

from __future__ import annotations

import numpy as np

from medret.demo.shapes import Canvas, Field

AIR_HU, LUNG_HU, FAT_HU, MUSCLE_HU, BONE_HU, MARROW_HU = -1000.0, -860.0, -100.0, 55.0, 900.0, 220.0


def head(canvas: Canvas) -> None:
    """T1-weighted MRI of a head: bright fat and white matter, dark bone and fluid."""
    scalp = canvas.ellipsoid((0, 0, 5), (76, 96, 92))
    neck = canvas.ellipsoid((0, -18, -90), (55, 62, 70))
    face = canvas.ellipsoid((0, 42, -55), (58, 58, 62))
    outline = np.maximum.reduce([scalp, neck, face])
    canvas.paint(outline, 0.95)
    canvas.paint(outline - 5, 0.42)
    canvas.paint(canvas.ellipsoid((0, 62, -62), (14, 26, 34)), 0.06)  # nasal cavity
    canvas.paint(canvas.ellipsoid((0, 30, -88), (20, 40, 12)), 0.12)
    skull = canvas.ellipsoid((0, 0, 5), (70, 90, 86))
    canvas.paint(skull, 0.10)
    canvas.paint(skull - 2.5, 0.55, within=canvas.inside(1.2 - np.abs(skull - 3.2)))  # marrow of the vault
    inner = skull - 7
    canvas.paint(inner, 0.20)  # cerebrospinal fluid
    folds = canvas.noise(7.5)
    brain = inner - 3
    canvas.paint(brain, 0.50)
    canvas.mark("brain", brain)
    sulci = canvas.inside((0.16 - np.abs(folds)) * 9) * canvas.inside(15 - brain)
    canvas.paint(brain - 3.5 - 13 * np.exp(-((folds / 0.5) ** 2)), 0.80)  # white matter follows the folds
    canvas.paint(brain, 0.22, within=sulci)
    canvas.paint(1.6 - np.abs(canvas.x), 0.20, within=canvas.inside(brain) * canvas.inside(30 - brain))  # the falx
    for side in (-1, 1):
        canvas.paint(canvas.ellipsoid((side * 24, 4, 2), (9, 20, 13)), 0.58)  # deep grey matter
        canvas.paint(canvas.ellipsoid((side * 9, 26, 14), (5.5, 19, 8)), 0.18)  # frontal horn
        canvas.paint(canvas.ellipsoid((side * 13, -26, 13), (7, 24, 9)), 0.18)  # occipital horn
        eye = canvas.ellipsoid((side * 31, 76, -30), (14, 14, 14))
        canvas.paint(eye + 4, 0.9)
        canvas.paint(eye, 0.15)
    canvas.paint(canvas.ellipsoid((0, 0, 0), (2.5, 12, 10)), 0.18)  # third ventricle
    cerebellum = np.minimum(canvas.ellipsoid((0, -44, -42), (46, 30, 22)), inner)
    canvas.paint(cerebellum + 2, 0.20)
    canvas.paint(cerebellum, 0.56)
    canvas.paint(cerebellum - 2, 0.82, within=canvas.inside((np.sin(canvas.z * 1.1 + folds) - 0.1) * 2))
    canvas.paint(canvas.ellipsoid((0, -22, -50), (13, 13, 48)), 0.8)  # brain stem


def chest(canvas: Canvas) -> None:
    """CT of a chest: two lungs with vessels, heart, aorta, spine and ribs."""
    torso = canvas.tube((0, 0), (168, 112))
    _ct_body(canvas, torso, fat_mm=14)
    lungs = np.maximum(
        canvas.ellipsoid((78, -2, -12), (58, 84, 135)),
        canvas.ellipsoid((-78, -2, -12), (56, 82, 135)),
    )
    _ribs(canvas, torso, lungs)
    heart = canvas.ellipsoid((-24, 22, -45), (66, 54, 60))
    mediastinum = canvas.tube((0, 0), (26, 62))
    lungs = np.minimum(lungs, -np.maximum(heart, mediastinum))
    canvas.mark("lung", lungs)
    canvas.mark("heart", heart)
    canvas.paint(lungs, LUNG_HU + 35 * canvas.noise(14))
    vessels = canvas.noise(13)
    for field, calibre in ((vessels, 0.13), (canvas.noise(9), 0.08)):
        branch = canvas.inside((calibre - np.hypot(field, canvas.noise(13))) * 40)
        canvas.paint(lungs - 3, 20.0, within=branch)
    canvas.paint(mediastinum - 8, 10.0)
    canvas.paint(heart, 40.0)
    for centre, radii in (((-36, 14, -50), (24, 26, 32)), ((6, 34, -48), (22, 20, 30)), ((-8, -8, -28), (26, 18, 22))):
        canvas.paint(canvas.ellipsoid(centre, radii), 150.0)  # chambers with contrast
    canvas.paint(canvas.tube((-22, -44), (12, 12)), 165.0)  # descending aorta
    canvas.mark("aorta", canvas.tube((-22, -44), (12, 12)))
    canvas.paint(np.minimum(canvas.tube((8, 20), (15, 15)), canvas.z + 5), 165.0)  # ascending aorta
    canvas.paint(np.minimum(canvas.tube((0, -8), (9, 8)), canvas.z - 8), AIR_HU)  # trachea
    canvas.mark("trachea", np.minimum(canvas.tube((0, -8), (9, 8)), canvas.z - 8))
    for side in (-1, 1):
        canvas.paint(canvas.ellipsoid((side * 20, -12, 2), (16, 6, 6)), AIR_HU)  # main bronchi
    _spine(canvas, y_mm=-68)
    canvas.paint(canvas.ellipsoid((0, 88, 0), (17, 6, np.inf)), 350.0)  # sternum
    _table(canvas)


def abdomen(canvas: Canvas) -> None:
    """Portal venous CT of an abdomen: liver, spleen, stomach, kidneys, bowel, spine."""
    torso = canvas.tube((0, 0), (160, 112))
    wall = _ct_body(canvas, torso, fat_mm=20)
    cavity = np.minimum(wall - 16, np.maximum(canvas.y + 55, 0) + 8)
    canvas.paint(cavity, FAT_HU)
    _ribs(canvas, torso, wall - 16, from_z_mm=10)
    liver = np.maximum(
        canvas.ellipsoid((72, 6, 32), (70, 74, 72)),
        canvas.ellipsoid((2, 44, 48), (64, 34, 34)),
    )
    texture = 6 * canvas.noise(10)
    canvas.paint(np.minimum(liver, cavity), 108 + texture)
    canvas.mark("liver", np.minimum(liver, cavity))
    for centre, radii in (((52, 14, 40), (34, 4.5, 4.5)), ((70, -8, 28), (4.5, 34, 4.5)), ((40, 30, 44), (4, 4, 26))):
        canvas.paint(canvas.ellipsoid(centre, radii), 170.0)  # portal branches
    canvas.paint(canvas.ellipsoid((52, 44, 4), (13, 20, 22)), 12.0)  # gall bladder
    canvas.mark("gallbladder", canvas.ellipsoid((52, 44, 4), (13, 20, 22)))
    stomach = np.minimum(canvas.ellipsoid((-66, 34, 30), (46, 38, 46)), cavity)
    canvas.paint(stomach, 60.0)
    canvas.mark("stomach", stomach)
    canvas.paint(stomach - 5, 20.0)
    canvas.paint(np.minimum(stomach - 5, canvas.y - 44), AIR_HU)  # the gas rises in a patient on the back
    spleen = np.minimum(canvas.ellipsoid((-106, -30, 40), (28, 44, 42)), cavity)
    canvas.paint(spleen, 125.0)
    canvas.mark("spleen", spleen)
    for side in (-1, 1):
        kidney = canvas.ellipsoid((side * 62, -46, -14 - 6 * side), (27, 25, 52))
        canvas.paint(kidney + 6, FAT_HU)
        canvas.paint(kidney, 185.0)
        canvas.mark("kidney", kidney)
        canvas.paint(kidney - 9, 130.0)
        canvas.paint(canvas.ellipsoid((side * 50, -44, -14), (12, 9, 20)), FAT_HU + 60)
    bowel, gas = canvas.noise(24), canvas.noise(28)
    belly = np.minimum(canvas.inside(cavity - 4), canvas.inside(-10 - canvas.z) * canvas.inside(canvas.y + 12))
    canvas.paint((bowel - 0.15) * 12, 40.0, within=belly)
    canvas.paint((bowel - 0.55) * 12, np.where(gas > 0.6, AIR_HU, 15.0), within=belly)
    canvas.paint(canvas.tube((-8, -34), (11, 11)), 175.0)  # aorta
    canvas.mark("aorta", canvas.tube((-8, -34), (11, 11)))
    canvas.paint(canvas.tube((18, -32), (13, 10)), 140.0)  # inferior vena cava
    for side in (-1, 1):
        canvas.paint(np.minimum(canvas.tube((side * 38, -62), (18, 20)), 25 - canvas.z), 60.0)  # psoas
    _spine(canvas, y_mm=-62)
    _table(canvas)


def pelvis(canvas: Canvas) -> None:
    """T2-weighted MRI of a male pelvis: bright bladder, dark muscle and cortex, prostate, hips."""
    outline = canvas.ellipsoid((0, 0, 20), (172, 112, 260))
    canvas.paint(outline, 0.78)
    inner = canvas.ellipsoid((0, 4, 20), (146, 90, 240))
    strands = canvas.noise(7)
    canvas.paint(inner, 0.26 + 0.03 * strands)  # muscles
    canvas.paint(canvas.ellipsoid((0, 12, 25), (60, 66, 95)), 0.66 + 0.05 * canvas.noise(12))  # pelvic fat
    for side in (-1, 1):
        canvas.paint(np.minimum(canvas.tube((side * 62, -62), (58, 40)), inner + 18), 0.24 + 0.05 * strands)  # gluteus
        bone = np.maximum(
            canvas.ellipsoid((side * 88, 6, 0), (25, 25, 25)),  # femoral head
            canvas.ellipsoid((side * 118, -4, -34), (22, 24, 36)),  # trochanter
        )
        canvas.paint(bone + 3, 0.06)
        canvas.paint(bone, 0.58)
        canvas.mark("femur", bone)
        socket = np.minimum(canvas.ellipsoid((side * 72, 2, 8), (20, 44, 46)), -bone - 3)
        canvas.paint(socket, 0.08)
        canvas.paint(socket - 4, 0.55)
        canvas.paint(canvas.ellipsoid((side * 48, 58, 20), (9, 9, 60)), 0.10)  # femoral vessels: flow is dark
        canvas.paint(canvas.ellipsoid((side * 26, 62, -30), (30, 9, 10)), 0.52)  # pubic rami
    sacrum = canvas.ellipsoid((0, -64, 45), (48, 17, 55))
    canvas.paint(sacrum, 0.07)
    canvas.paint(sacrum - 3, 0.50)
    canvas.mark("sacrum", sacrum)
    canvas.paint(canvas.ellipsoid((0, -74, 48), (13, 6, 52)), 0.85)  # sacral canal
    bladder = canvas.ellipsoid((0, 30, 34), (44, 36, 33))
    canvas.paint(bladder, 0.20)
    canvas.paint(bladder - 4, 1.0)
    canvas.mark("urinary_bladder", bladder)
    prostate = canvas.ellipsoid((0, 16, -18), (25, 20, 21))
    canvas.paint(prostate + 1.5, 0.16)
    canvas.paint(prostate, 0.72)  # peripheral zone
    canvas.mark("prostate", prostate)
    canvas.paint(canvas.ellipsoid((0, 20, -15), (17, 13, 16)), 0.42 + 0.08 * canvas.noise(7))  # transition zone
    rectum = canvas.ellipsoid((0, -30, 8), (19, 17, 70))
    canvas.paint(rectum, 0.30)
    canvas.paint(rectum - 4, 0.05)


def leg(canvas: Canvas) -> None:
    """T1-weighted MRI of both thighs: a femur in each, muscle compartments, bright fat."""
    fascia = canvas.noise(26)
    for side in (-1, 1):
        taper = 1 + canvas.z / 900
        x, y = (canvas.x - side * 84) / taper, canvas.y / taper
        radius, angle = np.hypot(x, y), np.arctan2(y, x * side)
        canvas.paint(78 - radius, 0.95)
        muscle = 64 - radius + 4 * np.cos(2 * angle)
        canvas.paint(muscle, 0.36 + 0.03 * canvas.noise(9))
        sectors = np.sin(angle * 3.5 + 0.9 * fascia + 0.02 * radius) * radius * 0.3
        canvas.paint(1.3 - np.abs(sectors), 0.8, within=canvas.inside(muscle) * canvas.inside(radius - 22))
        ring = 2.0 - np.abs(radius - 40 - 5 * fascia)
        canvas.paint(ring, 0.72, within=canvas.inside((canvas.noise(30) - 0.2) * 10))  # fat between compartments
        femur = 15 - np.hypot(x + side * 2, y - 8)
        canvas.paint(femur, 0.05)
        canvas.paint(femur - 5.5, 0.92)
        canvas.mark("femur", femur)
        for at_x, at_y in ((-26, -6), (-30, -14), (-6, -34)):
            canvas.paint(4.5 - np.hypot(x * side - at_x, y - at_y), 0.08)  # vessels


def heart(canvas: Canvas) -> None:
    """Short-axis cine MRI of a heart: bright blood, dark myocardium, from apex (low z) to base."""
    canvas.paint(canvas.ellipsoid((0, 0, 0), (150, 118, np.inf)), 0.85)
    wall = canvas.ellipsoid((0, 0, 0), (138, 104, np.inf))
    canvas.paint(wall, 0.30)
    lungs = np.maximum(canvas.ellipsoid((84, 22, 10), (46, 62, 90)), canvas.ellipsoid((-84, 6, 10), (42, 78, 90)))
    canvas.paint(lungs, 0.05 + 0.015 * canvas.noise(10))
    canvas.mark("lung", lungs)
    canvas.paint(canvas.ellipsoid((60, -52, -40), (80, 44, 62)), 0.34 + 0.02 * canvas.noise(9))  # liver
    canvas.paint(canvas.ellipsoid((-12, 8, 0), (74, 64, np.inf)), 0.62)  # epicardial fat
    size = np.sqrt(np.clip((canvas.z + 62) / 100, 0.02, 1))  # the ventricles close towards the apex
    left = np.hypot(canvas.x + 30, canvas.y - 2)
    right_cavity = (1 - np.hypot((canvas.x - 14) / (44 * size), (canvas.y - 12) / (38 * size))) * 36
    canvas.paint(right_cavity + 4, 0.24)
    canvas.paint(right_cavity, 0.92)
    canvas.paint(42 * size - left, 0.20)  # left myocardium
    canvas.mark("heart", np.maximum(right_cavity + 4, 42 * size - left))
    cavity = 29 * size - left
    canvas.paint(cavity, 1.0)
    for at_x, at_y in ((-44, 12), (-40, -14)):
        papillary = 5.5 - np.hypot(canvas.x - at_x, canvas.y - at_y)
        canvas.paint(papillary, 0.25, within=canvas.inside(cavity - 4) * canvas.inside(25 - canvas.z))
    canvas.paint(canvas.tube((-34, -68), (12, 12)), 0.95)  # descending aorta
    canvas.mark("aorta", canvas.tube((-34, -68), (12, 12)))
    spine = canvas.tube((6, -84), (20, 17))
    canvas.paint(spine, 0.42)
    canvas.paint(canvas.tube((6, -104), (8, 6)), 0.9)


def _ct_body(canvas: Canvas, torso: Field, *, fat_mm: float) -> Field:
    """Skin, fat and muscle; returns the depth below the muscle's surface."""
    canvas.paint(torso, 20.0)
    canvas.paint(torso - 2, FAT_HU)
    wall = torso - fat_mm
    canvas.paint(wall, MUSCLE_HU + 4 * canvas.noise(8))
    return wall


def _ribs(canvas: Canvas, torso: Field, cage: Field, *, from_z_mm: float = -np.inf) -> None:
    """Slanting ribs in the shell between the muscle's surface and the cavity."""
    shell = np.minimum(3.5 - np.abs(cage + 5), torso - 8)
    slant = np.sin((canvas.z - 0.45 * canvas.y) * (2 * np.pi / 27)) - 0.05
    rib = np.minimum(shell, slant * 6)
    if np.isfinite(from_z_mm):
        rib = np.minimum(rib, canvas.z - from_z_mm)
    canvas.paint(rib, 600.0)
    canvas.paint(rib - 2, MARROW_HU)


def _spine(canvas: Canvas, *, y_mm: float) -> None:
    """Vertebral bodies and discs, canal, transverse and spinous processes."""
    level = np.abs(((canvas.z + 200) % 32) - 16)  # 16 in the middle of a disc
    body = canvas.tube((0, y_mm), (20, 16))
    canvas.paint(body, 80.0)
    canvas.mark("vertebrae", body)
    bone = np.minimum(body, 13 - level)
    canvas.paint(bone, BONE_HU * 0.6)
    canvas.paint(bone - 2, MARROW_HU)
    arch = canvas.tube((0, y_mm - 24), (18, 13))
    canvas.paint(arch, BONE_HU * 0.6)
    canvas.paint(np.minimum(canvas.box((0, y_mm - 26, 0), (36, 4, np.inf)), 8 - level), 400.0)
    canvas.paint(np.minimum(canvas.box((0, y_mm - 38, 0), (3, 14, np.inf)), 9 - level), 450.0)
    canvas.paint(canvas.tube((0, y_mm - 23), (10, 8)), 30.0)


def _table(canvas: Canvas) -> None:
    """The curved carbon plate of the scanner's table. It does not move with the patient."""
    curve = canvas.y + 128 - (canvas.x / 42) ** 2
    canvas.paint(np.minimum(1.5 - np.abs(curve), 175 - np.abs(canvas.x)), -250.0)
