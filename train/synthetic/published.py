"""What the organisers published of the competition's 401,059 lesions, and what 4,800 free benign rows add to it.

``train.synthetic.metadata`` draws from these distributions.
"""

from __future__ import annotations

#: Hospital: patients and lesions in the competition's train file, licence, and skin lightness in standard deviations (the
#: hospitals' cameras and lighting differ). The last one occurs in the test files only.
HOSPITALS = {
    "Memorial Sloan Kettering Cancer Center": (398, 129_068, "CC-BY", 0.8),
    "Department of Dermatology, Hospital Clínic de Barcelona": (163, 105_724, "CC-BY-NC", -0.75),
    "University Hospital of Basel": (230, 65_218, "CC-BY-NC", -0.1),
    "Frazer Institute, The University of Queensland, Dermatology Research Centre": (176, 51_768, "CC-BY", 0.35),
    "ACEMID MIA": (44, 28_665, "CC-0", -0.7),
    "ViDIR Group, Department of Dermatology, Medical University of Vienna": (15, 12_640, "CC-BY-NC", -0.65),
    "Department of Dermatology, University of Athens, Andreas Syggros Hospital of Skin and Venereal Diseases, "
    "Alexander Stratigos, Konstantinos Liopyris": (16, 7_976, "CC-BY", -0.7),
    "FNQH Cairns": (0, 0, "CC-BY", 0.0),
}
#: Hospitals of the three one-lesion patients of the competition's public test file.
TEST_HOSPITALS = (
    "Memorial Sloan Kettering Cancer Center",
    "Frazer Institute, The University of Queensland, Dermatology Research Centre",
    "FNQH Cairns",
)
WHITE_TILES = {"Memorial Sloan Kettering Cancer Center": 0.89}  # share of '3D: white', elsewhere '3D: XP'

#: Lesions per patient in the 1,042 published patients: share of patients, lesions.
LESIONS_PER_PATIENT = (
    (0.0005, 0.012, 0.05, 0.212, 0.25, 0.428, 0.50, 0.579, 0.686, 0.75, 0.90, 0.95, 0.99, 0.9995),
    (1.0, 5.0, 25.0, 100.0, 115.0, 200.0, 241.5, 300.0, 400.0, 477.5, 823.0, 1123.0, 2158.0, 9184.0),
)
#: Published lesions by their patient's age and sex; None where the file is empty.
AGES = {
    15: 624, 20: 1742, 25: 3433, 30: 10346, 35: 11037, 40: 30480, 45: 22969, 50: 47455, 55: 53795, 60: 53417,
    65: 53780, 70: 38255, 75: 30378, 80: 21096, 85: 8847, None: 2798,
}  # fmt: skip
SEXES = {"male": 265_546, "female": 123_996, None: 11_517}
UNKNOWN_SITE = 5_756 / 401_059  # the site is missing for all lesions of a patient or for none
SECOND_VISIT = 0.1  # share of patients whose lesions carry two ages, five years apart

#: tbp_lv_location: anatom_site_general, tbp_lv_location_simple, published lesions, then mean and standard deviation of
#: x, y and z in mm (medians and 16-84 % half-widths of the 4,800 benign rows that can be had freely).
LOCATIONS = {
    "Torso Back Top Third": ("posterior torso", "Torso Back", 71_112, -8, 113, 1360, 115, 134, 44),
    "Torso Front Top Half": ("anterior torso", "Torso Front", 63_350, 15, 127, 1300, 148, -38, 68),
    "Torso Back Middle Third": ("posterior torso", "Torso Back", 46_185, -13, 129, 1120, 96, 133, 48),
    "Left Leg - Lower": ("lower extremity", "Left Leg", 27_428, -226, 56, 293, 125, 80, 46),
    "Right Leg - Lower": ("lower extremity", "Right Leg", 25_208, 233, 53, 289, 120, 77, 46),
    "Torso Front Bottom Half": ("anterior torso", "Torso Front", 24_360, -16, 129, 1014, 104, -62, 68),
    "Left Leg - Upper": ("lower extremity", "Left Leg", 23_673, -164, 57, 624, 94, 33, 64),
    "Right Leg - Upper": ("lower extremity", "Right Leg", 23_034, 155, 63, 630, 97, 24, 67),
    "Right Arm - Upper": ("upper extremity", "Right Arm", 22_972, 284, 73, 1324, 114, 73, 55),
    "Left Arm - Upper": ("upper extremity", "Left Arm", 22_816, -288, 72, 1341, 95, 79, 52),
    "Head & Neck": ("head/neck", "Head & Neck", 12_046, -2, 68, 1574, 97, -34, 74),
    "Left Arm - Lower": ("upper extremity", "Left Arm", 11_939, -403, 49, 1096, 131, 15, 62),
    "Right Arm - Lower": ("upper extremity", "Right Arm", 10_636, 403, 62, 1100, 147, 6, 60),
    "Torso Back Bottom Third": ("posterior torso", "Torso Back", 4_596, -45, 154, 904, 81, 136, 53),
    "Left Leg": ("lower extremity", "Left Leg", 1_974, 200, 73, 371, 165, 52, 57),
    "Right Leg": ("lower extremity", "Right Leg", 1_711, -142, 140, 438, 209, 55, 61),
    "Left Arm": ("upper extremity", "Left Arm", 1_593, 327, 50, 1272, 155, 56, 45),
    "Right Arm": ("upper extremity", "Right Arm", 601, -300, 70, 1209, 78, 68, 66),
    "Torso Front": ("anterior torso", "Torso Front", 60, 15, 127, 1200, 148, -38, 68),
    "Torso Back": ("posterior torso", "Torso Back", 9, -8, 113, 1200, 148, 134, 44),
    "Unknown": (None, "Unknown", 0, 20, 247, 1145, 400, 50, 90),
}
SITE_HABIT = 40.0  # Dirichlet concentration of a patient's own distribution over locations around the published one
BODY_LIMITS = ((-624.9, 614.5), (-1052.0, 1887.8), (-291.9, 319.4))  # published minimum and maximum of x, y, z in mm

#: Column (tbp_lv_ in front): share of the variance that is between patients, then its quantiles at QUANTILE_LEVELS.
#: Minimum, quartiles and maximum are the organisers' published ones of the 401,059 rows, the others those of 4,800 benign
#: rows. The shares are as measured there for colours, and raised to 0.3 for size and colour variation (measured: 0.1), so
#: that patient context pays in small synthetic datasets as it does in the real file.
QUANTILE_LEVELS = (0.0, 0.01, 0.05, 0.10, 0.25, 0.50, 0.75, 0.90, 0.95, 0.99, 0.999, 1.0)
MEASURED = {
    "Lext": (0.50, 17.70, 23.9, 30.6, 34.6, 42.27, 51.43, 60.50, 67.1, 70.0, 75.0, 82.6, 98.59),
    "Aext": (0.40, -9.08, 7.57, 9.41, 10.5, 12.47, 14.71, 17.14, 19.4, 21.0, 24.2, 27.7, 37.02),
    "Bext": (0.40, 9.24, 17.5, 19.9, 21.3, 23.85, 26.70, 29.68, 32.8, 35.1, 39.1, 42.4, 48.37),
    "deltaL": (0.35, -38.76, -19.9, -15.6, -13.6, -10.68, -8.13, -6.40, -5.17, -4.61, -3.89, -3.30, -1.59),
    "deltaA": (0.35, -13.82, 0.32, 1.72, 2.38, 3.413, 4.644, 6.274, 8.07, 9.25, 13.6, 22.8, 32.14),
    "deltaB": (0.35, -18.09, -4.78, -2.52, -1.49, 0.111, 1.594, 2.851, 3.97, 4.59, 6.02, 7.54, 12.64),
    "areaMM2": (0.30, 0.432, 2.21, 2.82, 3.25, 4.110, 5.686, 9.120, 16.0, 23.1, 50.0, 108.0, 334.15),
    "area_perim_ratio": (0.25, 10.76, 13.4, 14.0, 14.4, 15.43, 17.42, 21.01, 25.8, 29.7, 38.4, 48.5, 87.21),
    "eccentricity": (0.10, 0.028, 0.339, 0.459, 0.529, 0.657, 0.768, 0.853, 0.905, 0.925, 0.945, 0.964, 0.975),
    "deltaLBnorm": (0.30, 3.001, 4.55, 4.79, 5.03, 5.748, 6.946, 8.748, 10.8, 12.2, 15.3, 18.3, 30.49),
    "color_std_mean": (0.30, 0.0, 0.0, 0.0, 0.275, 0.575, 0.931, 1.412, 1.98, 2.42, 3.53, 5.29, 9.953),
    "radial_color_std_max": (0.30, 0.0, 0.0, 0.0, 0.194, 0.564, 0.902, 1.335, 1.89, 2.31, 3.40, 5.35, 11.49),
    "norm_color": (0.30, 0.0, 0.0, 0.0, 0.761, 1.729, 2.765, 4.120, 5.80, 6.99, 9.65, 10.0, 10.0),
    "norm_border": (0.25, 0.589, 1.19, 1.51, 1.70, 2.144, 2.997, 4.358, 5.85, 6.90, 8.76, 9.96, 10.0),
    "stdL": (0.30, 0.268, 0.727, 0.915, 1.08, 1.457, 2.187, 3.475, 5.09, 6.05, 8.50, 11.2, 17.56),
    "stdLExt": (0.30, 0.636, 1.24, 1.45, 1.59, 1.835, 2.150, 2.531, 2.95, 3.29, 4.07, 5.30, 25.53),
    "symm_2axis": (0.20, 0.052, 0.112, 0.147, 0.168, 0.211, 0.282, 0.382, 0.481, 0.541, 0.660, 0.743, 0.977),
    "nevi_confidence": (0.35, 0.0, 1.7e-9, 1.7e-5, 8.2e-4, 0.110, 14.41, 87.79, 98.3, 99.5, 99.94, 99.999, 100.0),
}
#: Correlation of the normal scores of the MEASURED columns in the same 4,800 rows, in per cent, row by row.
CORRELATIONS = """
 12
 48  38
-55   7 -29
 47 -20  31 -64
 35 -14  17   3  32
  4 -17  -3 -36  20 -14
-20  17 -11  42 -44 -16  14
 -7  11   1  29 -22  -2 -29  53
 11 -24   5 -86  51 -12  41 -42 -32
 21 -17   8 -66  38 -17  73 -16 -34  66
 19 -14   7 -60  34 -15  69 -16 -35  60  93
 20 -16   8 -64  37 -17  72 -16 -35  64  98  98
-21  22  -9  52 -48 -10 -12  89  50 -52 -31 -30 -31
 35 -15  19 -90  54 -10  44 -37 -32  86  78  71  76 -47
 27  22   9 -25   1 -15  10  26   7   8  15  15  15  24  11
-19  23  -6  52 -45  -4 -32  70  40 -53 -42 -39 -41  93 -49  18
 15 -30  13 -59  50  13  37 -50 -36  64  48  43  46 -60  59 -17 -61
"""

#: Diagnoses as iddx_full writes them. Malignant: as often as among the 393 published ones. Benign and indeterminate: the
#: organisers publish 675 and 114, 443 of them nevi; their further division is a guess.
MALIGNANT_DIAGNOSES = {
    "Malignant adnexal epithelial proliferations - Follicular::Basal cell carcinoma": 13,
    "Malignant adnexal epithelial proliferations - Follicular::Basal cell carcinoma::Basal cell carcinoma, Nodular": 96,
    "Malignant adnexal epithelial proliferations - Follicular::Basal cell carcinoma::Basal cell carcinoma, Superficial": 49,
    "Malignant adnexal epithelial proliferations - Follicular::Basal cell carcinoma::Basal cell carcinoma, Infiltrating": 5,
    "Malignant melanocytic proliferations (Melanoma)::Melanoma in situ": 42,
    "Malignant melanocytic proliferations (Melanoma)::Melanoma in situ::Melanoma in situ, Lentigo maligna type": 15,
    "Malignant melanocytic proliferations (Melanoma)::Melanoma in situ::Melanoma in situ, associated with a nevus": 12,
    "Malignant melanocytic proliferations (Melanoma)::Melanoma in situ::Melanoma in situ, Superficial spreading": 10,
    "Malignant melanocytic proliferations (Melanoma)::Melanoma Invasive": 13,
    "Malignant melanocytic proliferations (Melanoma)::Melanoma Invasive::Melanoma Invasive, Superficial spreading": 43,
    "Malignant melanocytic proliferations (Melanoma)::Melanoma Invasive::Melanoma Invasive, Associated with a nevus": 7,
    "Malignant melanocytic proliferations (Melanoma)::Melanoma Invasive::Melanoma Invasive, Nodular": 1,
    "Malignant melanocytic proliferations (Melanoma)::Melanoma Invasive::Melanoma Invasive, On chronically sun-exposed "
    "skin or lentigo maligna melanoma": 5,
    "Malignant melanocytic proliferations (Melanoma)::Melanoma, NOS": 8,
    "Malignant melanocytic proliferations (Melanoma)::Melanoma metastasis": 1,
    "Malignant epidermal proliferations::Squamous cell carcinoma in situ": 50,
    "Malignant epidermal proliferations::Squamous cell carcinoma in situ::Squamous cell carcinoma in situ, "
    "Bowens disease": 1,
    "Malignant epidermal proliferations::Squamous cell carcinoma, Invasive": 15,
    "Malignant epidermal proliferations::Squamous cell carcinoma, Invasive::Squamous cell carcinoma, Invasive, "
    "Keratoacanthoma-type": 5,
    "Malignant epidermal proliferations::Squamous cell carcinoma, NOS": 2,
}
BENIGN_DIAGNOSES = {
    "Benign::Benign melanocytic proliferations::Nevus": 240,
    "Benign::Benign melanocytic proliferations::Nevus::Nevus, Atypical, Dysplastic, or Clark": 125,
    "Benign::Benign melanocytic proliferations::Nevus::Nevus, NOS, Compound": 40,
    "Benign::Benign melanocytic proliferations::Nevus::Nevus, NOS, Junctional": 38,
    "Benign::Benign melanocytic proliferations::Lentigo::Lentigo NOS": 10,
    "Benign::Benign epidermal proliferations::Seborrheic keratosis": 60,
    "Benign::Benign epidermal proliferations::Lichen planus like keratosis": 25,
    "Benign::Benign epidermal proliferations::Pigmented benign keratosis": 8,
    "Benign::Benign soft tissue proliferations - Fibro-histiocytic::Dermatofibroma": 10,
    "Benign::Benign soft tissue proliferations - Vascular::Hemangioma": 5,
    "Indeterminate::Indeterminate melanocytic proliferations::Atypical intraepithelial melanocytic proliferation": 60,
    "Indeterminate::Indeterminate epidermal proliferations::Solar or actinic keratosis": 54,
}
BIOPSIED_BENIGN = 789 / 400_666  # the 675 biopsied benign and 114 indeterminate lesions
FOLLOWED_BENIGN = 0.054  # share of benign lesions that have a lesion_id
MITOSES = {"0/mm^2": 20, "<1/mm^2": 17, "1/mm^2": 3, "2/mm^2": 2, "3/mm^2": 2, "4/mm^2": 1, ">4/mm^2": 4}
THICKNESSES_MM = {0.2: 8, 0.3: 14, 0.4: 13, 0.5: 8, 0.6: 6, 0.8: 4, 1.0: 3, 1.4: 2, 2.2: 1, 5.0: 1}
#: Quantiles of tbp_lv_dnn_lesion_confidence among 4,800 benign and 315 malignant rows.
CONFIDENCE_LEVELS = (0.0, 0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0)
BENIGN_CONFIDENCE = (5.5e-7, 40.9, 55.8, 79.2, 93.4, 99.67, 99.995, 99.99996, 100.0)
MALIGNANT_CONFIDENCE = (2.3e-6, 3e-6, 5e-5, 0.16, 3.15, 86.0, 99.68, 99.995, 100.0)
