"""The operators that an ONNX model may call, for each of the two standard domains.

Not listed, and why:
- Loops (``Loop``, ``Scan``, ``SequenceMap``): a model could run forever. ``If`` is allowed; its
  branches are checked like the graph.
- Random operators: answers would be random, and ONNX Runtime's noise can be predicted.
- Sequences, optional values, images and regular expressions, which a classifier does not need.
- Other domains (such as ``com.microsoft``), and functions defined in the file.
"""
# ruff: noqa: SIM905  # hundreds of names are easier to read without quotes

from collections.abc import Mapping
from types import MappingProxyType

STANDARD = frozenset(
    """
    Abs Acos Acosh Add AffineGrid And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool
    BatchNormalization BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast CastLike Ceil
    Celu CenterCropPad Clip Col2Im Concat Constant ConstantOfShape Conv ConvInteger
    ConvTranspose Cos Cosh CumProd CumSum DFT DepthToSpace DequantizeLinear Div Dropout
    DynamicQuantizeLinear Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor GRU Gather
    GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater
    GreaterOrEqual GridSample GroupNormalization HardSigmoid HardSwish Hardmax Identity If
    InstanceNormalization IsInf IsNaN LRN LSTM LayerNormalization LeakyRelu Less LessOrEqual Log
    LogSoftmax LpNormalization LpPool MatMul MatMulInteger Max MaxPool Mean
    MeanVarianceNormalization Min Mish Mod Mul Neg NonZero Not OneHot Or PRelu Pad Pow
    QLinearConv QLinearMatMul QuantizeLinear RMSNormalization RNN Range Reciprocal ReduceL1
    ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
    ReduceSumSquare Relu Reshape Resize ReverseSequence RotaryEmbedding Round Scatter
    ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax
    Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Swish Tan Tanh TfIdfVectorizer
    ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Upsample Where Xor
    """.split()
)
"""Operators of the domain ai.onnx, which is also written as an empty string."""

MACHINE_LEARNING = frozenset(
    """
    ArrayFeatureExtractor Binarizer CastMap CategoryMapper DictVectorizer FeatureVectorizer
    Imputer LabelEncoder LinearClassifier LinearRegressor Normalizer OneHotEncoder SVMClassifier
    SVMRegressor Scaler TreeEnsemble TreeEnsembleClassifier TreeEnsembleRegressor ZipMap
    """.split()
)
"""Operators of the domain ai.onnx.ml, used by exported scikit-learn models."""

OPERATORS: Mapping[str, frozenset[str]] = MappingProxyType(
    {"": STANDARD, "ai.onnx": STANDARD, "ai.onnx.ml": MACHINE_LEARNING}
)
LOOPS = frozenset(["Loop", "Scan", "SequenceMap"])
RANDOM = frozenset(
    """
    Bernoulli Multinomial RandomNormal RandomNormalLike RandomUniform RandomUniformLike
    """.split()
)
