package appliance

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// gateFlags act on the whole process, because the three Kubernetes programs
// share one registry of feature gates (component-base/compatibility/registry.go).
var gateFlags = []string{"feature-gates", "emulated-version", "min-compatibility-version", "emulation-forward-compatible", "runtime-config-emulation-forward-compatible"}

// checkGates refuses gates that the three programs would have differently when
// they were three processes: here the last one would win silently.
func checkGates(args map[string][]arg) error {
	seen := map[string]arg{}
	owner := map[string]string{}
	var errs []error
	for _, program := range []string{nameAPIServer, nameControllerManager, nameScheduler} {
		for _, a := range gatesOf(args[program]) {
			first, ok := seen[a.key]
			if ok && first.value != a.value {
				errs = append(errs, WithHint(
					fmt.Errorf("%s: %s=%s, but %s: %s=%s", owner[a.key], first.key, first.value, program, a.key, a.value),
					"feature gates hold for the whole process; give each once"))
			}
			seen[a.key], owner[a.key] = a, program
		}
	}
	return errors.Join(errs...)
}

// gatesOf splits the gate flags of one program into single settings.
func gatesOf(args []arg) []arg {
	var gates []arg
	for _, a := range args {
		if !slices.Contains(gateFlags, a.key) {
			continue
		}
		for part := range strings.SplitSeq(a.value, ",") {
			key, value, found := strings.Cut(strings.TrimPrefix(part, "kube:"), "=")
			if !found {
				key, value = a.key, part
			}
			gates = append(gates, arg{key, value})
		}
	}
	return gates
}

// withoutGates drops the gate flags: a second parse would add them up, and the
// registry ignores what comes after Set.
func withoutGates(args []arg) []arg {
	return slices.DeleteFunc(slices.Clone(args), func(a arg) bool { return slices.Contains(gateFlags, a.key) })
}
