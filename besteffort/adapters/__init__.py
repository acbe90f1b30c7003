"""Adapters to other libraries: their learners on this environment, their policies as routers, policies as ONNX.

| module | what | needs |
|---|---|---|
| `wrapped` | the environment, the network's features and the reward of a step, for all adapters | |
| `gymnasium` | a vector environment and a single one, registered as `besteffort/Serving-v1` | gymnasium |
| `gymnax` | an environment of gymnax 1.0, for loops that are compiled as a whole | gymnax |
| `stable_baselines3` | a `VecEnv`, a replay buffer that joins outcomes, its DQN as a policy | stable-baselines3 |
| `routers` | any function, or any model with `predict`, as a router | |
| `onnx` | a policy as one ONNX file | onnx |

The rest of the package imports none of these modules.
"""
