package found

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
)

// askTime bounds how long systemd may take for all of its answers.
const askTime = 30 * time.Second

// loaded asks systemd over D-Bus for its services. It knows more than the search path says: transient
// units, drop-ins of every directory and of a common prefix of names, the changes of systemctl
// set-property, and which file counts while a newer one waits for systemctl daemon-reload. The error
// is fs.ErrNotExist where no systemd runs.
func (m *Machine) loaded(ctx context.Context) (all []unit, err error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	conn, err := connect(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	names, err := serviceNames(ctx, conn)
	if err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	for _, name := range names {
		properties, err := conn.GetAllPropertiesContext(ctx, name)
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case err != nil: // a transient one that has ended meanwhile
			m.note("%s: %v: left alone", name, err)
			continue
		}
		// An alias has the properties of its unit.
		if u, is := fromProperties(properties); is && !seen[u.name] {
			seen[u.name] = true
			all = append(all, u)
		}
	}
	return all, nil
}

// connect connects to the bus of the system, or as root to systemd itself, which a machine without
// a bus has, too. The error is the bus's.
func connect(ctx context.Context) (*dbus.Conn, error) {
	conn, err := dbus.NewSystemConnectionContext(ctx)
	if err == nil || os.Geteuid() != 0 {
		return conn, err
	}
	if direct, errDirect := dbus.NewSystemdConnectionContext(ctx); errDirect == nil {
		return direct, nil
	}
	return nil, err
}

// serviceNames are the names of all services that have a file or run.
func serviceNames(ctx context.Context, conn *dbus.Conn) (names []string, err error) {
	only := []string{"*.service"}
	files, err := conn.ListUnitFilesByPatternsContext(ctx, nil, only)
	if err != nil {
		return nil, err
	}
	units, err := conn.ListUnitsByPatternsContext(ctx, nil, only)
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		names = append(names, filepath.Base(f.Path))
	}
	for _, u := range units {
		names = append(names, u.Name)
	}
	slices.Sort(names)
	return slices.DeleteFunc(slices.Compact(names), isTemplate), nil
}

// fromProperties is the unit that systemd describes. What systemd has read already is written so
// that reading it again changes nothing.
func fromProperties(p map[string]any) (u unit, is bool) {
	text := func(key string) string { s, _ := p[key].(string); return s }
	if state := text("LoadState"); state == "masked" || state == "not-found" {
		return unit{}, false
	}
	u = unit{root: "/", name: text("Id"), path: text("FragmentPath")}
	if u.path == "" {
		u.path = u.name
	}
	u.stale, _ = p["NeedDaemonReload"].(bool)
	starts, ok := p["ExecStartEx"].([][]any)
	if !ok { // systemd before 243
		starts, _ = p["ExecStart"].([][]any)
	}
	for _, s := range starts {
		if start := startOf(s); start != "" {
			u.starts = append(u.starts, start)
		}
	}
	u.env, _ = p["Environment"].([]string)
	u.unset, _ = p["UnsetEnvironment"].([]string)
	files, _ := p["EnvironmentFiles"].([][]any)
	for _, f := range files {
		if len(f) < 2 {
			continue
		}
		path := strings.ReplaceAll(fmt.Sprint(f[0]), "%", "%%")
		if optional, _ := f[1].(bool); optional {
			path = "-" + path
		}
		u.envFiles = append(u.envFiles, path)
	}
	return u, u.name != ""
}

// startOf is a command of ExecStart= as a unit file would have it: the file, the words, and flags
// such as no-env-expand.
func startOf(command []any) string {
	if len(command) < 3 {
		return ""
	}
	path, _ := command[0].(string)
	words, _ := command[1].([]string)
	flags, _ := command[2].([]string)
	if len(words) == 0 {
		return ""
	}
	prefix := ""
	if slices.Contains(flags, "no-env-expand") {
		prefix = ":"
	}
	if words[0] != path {
		prefix += "@"
		words = append([]string{path}, words...)
	}
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "%", "%%").Replace(w) + `"`
	}
	quoted[0] = `"` + prefix + quoted[0][1:]
	return strings.Join(quoted, " ")
}
