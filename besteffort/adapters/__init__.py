"""Other people's libraries: their learners on our environment, their policies as our routers, our models
under their measures.

| module | what | needs |
|---|---|---|
| `problem` | an environment, what a network reads of it and what a step pays, as all of them take it | |
| `gymnasium` | a vector environment and a single one, registered as `besteffort/Serving-v1` | gymnasium |
| `gymnax` | an environment of gymnax 1.0, for loops that are compiled as a whole | gymnax |
| `stable_baselines3` | a `VecEnv`, a replay buffer that joins outcomes, its DQN as our policy | stable-baselines3 |
| `routers` | any function, or a model that predicts, as a router | |
| `onnx` | a policy as one ONNX file | onnx |
| `lm_eval` | OPT as a model of lm-evaluation-harness | lm-eval |

Nothing here is imported unless it is asked for.
"""
