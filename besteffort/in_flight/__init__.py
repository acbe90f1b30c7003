"""Live book-keeping: what a gateway knows of its requests, from events alone. NumPy only.

    flight = InFlight(policy)
    flight.arrived("a", task="piqa", prompt_tokens=120)
    model, replica = flight.decide("a")
    flight.sent("a", model, replica)
    flight.tokens("a")          # the first, and every further one; not where answers are not streamed
    flight.done("a")            # with the last token; or `failed`, or `cancelled`

Where `view.slowdown_tau_s` of the situation is set, it also compares observed times with the tables, see
`besteffort.estimates.correction`.

| module | what |
|---|---|
| `entries`, `seats` | a request and the sums over those of an instance; the same requests as arrays |
| `replicas` | which are up, how many requests each has, and which one the next request would get |
| `fast_params` | the numbers of the situation, as they are read fast |
| `observed_times` | what events tell of how long iterations take |
| `books` | the events, which change all of these |
| `decisions` | `InFlight`: the books of a policy, and what it decides |
"""

from besteffort.in_flight.decisions import Decision, InFlight

__all__ = ["Decision", "InFlight"]
