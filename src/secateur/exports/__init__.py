"""Models as folders that CTranslate2 and ONNX Runtime run, in fp32 or int8, and the proof that they answer alike."""
