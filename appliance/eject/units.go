package eject

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"kthwd/appliance/explain"
	"kthwd/appliance/program"
)

// descriptions are those of the guide's units.
var descriptions = map[string]string{
	program.Etcd:              "etcd",
	program.APIServer:         "Kubernetes API Server",
	program.ControllerManager: "Kubernetes Controller Manager",
	program.Scheduler:         "Kubernetes Scheduler",
}

// after is the unit that a program waits for. etcd and kube-apiserver tell systemd when they
// serve; without the order each program would fail, and be started again, until they do.
var after = map[string]string{
	program.APIServer:         program.Etcd,
	program.ControllerManager: program.APIServer,
	program.Scheduler:         program.APIServer,
}

// unit is the systemd unit of a program.
func (in Input) unit(name string, args map[string][]program.Arg, owner account) File {
	var b strings.Builder
	line := func(format string, a ...any) { fmt.Fprintf(&b, format+"\n", a...) }
	line("[Unit]\nDescription=%s", descriptions[name])
	line("Wants=network-online.target")
	order := "network-online.target kthwd-controller.service"
	if before := after[name]; before != "" {
		line("Wants=%s.service", before)
		order += " " + before + ".service"
	}
	line("After=%s", order)
	line("# The two must not use one data directory: a start of either stops the other.")
	line("Conflicts=kthwd-controller.service")
	line("\n[Service]")
	if name == program.Etcd || name == program.APIServer {
		line("Type=notify")
		line("# It serves once etcd has a quorum, which can take as long as the other controllers do.\nTimeoutStartSec=infinity")
	}
	if owner.User != "" {
		line("# The owner of the data directory, so that kthwd can go on with its files.\nUser=%s\nGroup=%s", owner.User, owner.Group)
	}
	if len(in.Variables) > 0 {
		line("EnvironmentFile=%s", unitPath(filepath.Join(in.ConfigDir, environmentFile)))
	}
	line("ExecStart=%s", explain.ExecStart(filepath.Join(in.BinDir, name), args[name]))
	line("Restart=on-failure\nRestartSec=5")
	line("LimitNOFILE=1048576")
	line("# A core dump contains the keys of the cluster.\nLimitCORE=0\nUMask=0077\nNoNewPrivileges=yes")
	if owner.User != "" && privileged(args[name]) {
		line("AmbientCapabilities=CAP_NET_BIND_SERVICE")
	}
	line("\n[Install]\nWantedBy=multi-user.target")
	return File{filepath.Join("systemd", name+".service"), 0o644, []byte(b.String())}
}

// unitPath writes a path in a setting other than ExecStart=, where % begins a specifier and
// a quote would be taken for a character of the path.
func unitPath(path string) string { return strings.ReplaceAll(path, "%", "%%") }

// privileged reports whether a program listens on a port that only root may open.
func privileged(args []program.Arg) bool {
	for _, a := range args {
		values := []string{a.Value}
		if strings.HasPrefix(a.Key, "listen-") {
			values = strings.Split(a.Value, ",")
		} else if a.Key != "secure-port" {
			continue
		}
		for _, v := range values {
			port, err := strconv.Atoi(v[strings.LastIndex(v, ":")+1:])
			if err == nil && port > 0 && port < 1024 {
				return true
			}
		}
	}
	return false
}

// environment is a file for EnvironmentFile=, in whose double quotes a backslash takes the
// meaning from ", \, ` and $ (systemd.exec(5)).
func environment(variables []string) []byte {
	quoted := strings.NewReplacer(`\`, `\\`, `"`, `\"`, "`", "\\`", `$`, `\$`)
	var b strings.Builder
	for _, v := range variables {
		name, value, _ := strings.Cut(v, "=")
		fmt.Fprintf(&b, "%s=\"%s\"\n", name, quoted.Replace(value))
	}
	return []byte(b.String())
}
