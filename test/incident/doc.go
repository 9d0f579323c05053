// Package incident replays incidents on the real binary, and checks that a tired operator
// would find the cause: each surface that shows the state of a controller must name the
// cause, the time at which it began, and a command that can be typed as it stands.
//
// A test makes the incident, then calls look with what the surfaces must say:
//
//	seen := look(t, c, incident{name: "…", cause: `webhook "…"`, do: "kubectl delete …", kind: "webhook"})
//
// look waits until kthwd status says it, and then reads the other surfaces: JSON, the
// health bridge, the metrics, the page and the log. Each test then types the command and
// waits until the controller is healthy again, where that is possible.
//
// Where the incident ends the process or keeps it from starting, ended checks what is left: the
// error of the start or kthwd status, and the log.
//
// make incidents runs them all and prints a table of incidents and surfaces with a score:
// three points for each incident (cause, time, command), and the alert that fires. An incident
// that was skipped has none. Below 45 of 48 points it fails, where it runs as root.
package incident
