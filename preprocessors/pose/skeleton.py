"""The skeletons of OpenPose: order of the keypoints, limbs, colours.

Body, 18 keypoints in the order of `BODY_NAMES`; "right" is the person's own right. Hand, 21: the wrist, then four
joints of each finger from the thumb on. Face, 70: outline, brows, nose, eyes, mouth, pupils.
"""

from __future__ import annotations

# fmt: off
BODY_NAMES = (
    "nose", "neck", "right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow", "left_wrist",
    "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle",
    "right_eye", "left_eye", "right_ear", "left_ear",
)

# Seventeen limbs by keypoint numbers, in drawing order; limb i and joint i share colour i.
BODY_LIMBS = (
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13),
    (1, 0), (0, 14), (14, 16), (0, 15), (15, 17),
)

# The hue circle in steps of 20 degrees, rounded as the networks were trained on it.
BODY_COLOURS = (
    (255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0), (0, 255, 0), (0, 255, 85),
    (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255), (0, 0, 255), (85, 0, 255), (170, 0, 255),
    (255, 0, 255), (255, 0, 170), (255, 0, 85),
)
# fmt: on

# The official annotator draws limbs darker than joints.
LIMB_SHADE = 0.6

HAND_BONES = tuple((0 if joint % 4 == 1 else joint - 1, joint) for joint in range(1, 21))

# OpenPose's BODY_25 has the middle of the hips as number 8, and the feet after the ears. The networks know neither.
BODY_25_TO_18 = (0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18)

# fmt: off
# AP-10K's keypoints; "right" is the animal's own right. 0 to 4: left eye, right eye, nose, neck, root of the tail. 5 to
# 16: shoulder, elbow and front paw, left then right; hip, knee and back paw, left then right.

# Lines between keypoint numbers and their colours, in drawing order, as the animal pose net was trained on them.
# One green occurs twice: at the right front paw and at the left hip.
ANIMAL_LIMBS = (
    ((0, 1), (255, 255, 255)), ((1, 2), (100, 255, 100)), ((0, 2), (150, 255, 255)), ((2, 3), (100, 50, 255)),
    ((3, 8), (50, 150, 200)), ((8, 9), (0, 255, 255)), ((9, 10), (0, 150, 0)),
    ((3, 5), (0, 0, 255)), ((5, 6), (0, 0, 150)), ((6, 7), (255, 50, 255)), ((3, 4), (255, 0, 255)),
    ((4, 14), (255, 0, 0)), ((14, 15), (150, 0, 0)), ((15, 16), (255, 255, 100)),
    ((4, 11), (0, 150, 0)), ((11, 12), (255, 255, 0)), ((12, 13), (150, 150, 150)),
)
# fmt: on
