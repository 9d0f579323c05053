// Package names tells whether a command line is one of upstream's programs, which the binary
// of kthwd also is: a link to it with the name of a program, kthwd program NAME, or
// kthwd kubectl. It links none of them, so that it can decide before their packages are
// initialised.
package names

import (
	"path/filepath"
	"slices"
	"strings"
)

// The programs that are no component of a control plane.
const (
	Kubectl = "kubectl"
	Etcdctl = "etcdctl"
	Etcdutl = "etcdutl"
)

// All are the names of the programs, in the order of the alphabet.
var All = []string{"etcd", Etcdctl, Etcdutl, "kube-apiserver", "kube-controller-manager", "kube-scheduler", Kubectl}

// Program is the verb that runs a program by its name.
const Program = "program"

// Call is a command line of a program.
type Call struct {
	Name string   // one of All; "" means kthwd itself
	Args []string // the command line, with the name of the program first
	Find bool     // kthwd finds the kubeconfig
	Own  []string // the flags of kthwd with which it does
}

// Of returns the program that a command line means. The first word of argv is the name with
// which the binary was started.
func Of(argv []string) Call {
	if len(argv) == 0 {
		return Call{}
	}
	if name := filepath.Base(argv[0]); slices.Contains(All, name) {
		return Call{Name: name, Args: argv}
	}
	args, completion := argv[1:], []string(nil)
	if Completes(args) {
		completion, args = args[:1], args[1:]
	}
	own, args := settings(args)
	if len(args) == 0 {
		return Call{}
	}
	c := Call{Name: args[0], Find: args[0] == Kubectl}
	rest := args[1:]
	switch {
	case c.Find:
		var after []string
		after, rest = settings(rest)
		c.Own = append(slices.Clip(own), after...)
	case args[0] == Program && len(own) == 0 && len(rest) > 0 && slices.Contains(All, rest[0]):
		c.Name, rest = rest[0], rest[1:]
	default:
		return Call{}
	}
	if completion != nil && len(rest) == 0 { // the word that is being typed is still kthwd's
		return Call{}
	}
	c.Args = slices.Concat([]string{c.Name}, completion, rest)
	return c
}

// settings are the flags of kthwd at the beginning of args that say which data directory is
// meant. No flag of kubectl has one of these names.
func settings(args []string) (own, rest []string) {
	i := 0
	for i < len(args) {
		name, _, with := strings.Cut(args[i], "=")
		if name != "--data-dir" && name != "--config" {
			break
		}
		if !with && i+1 < len(args) {
			i++
		}
		i++
	}
	return args[:i], args[i:]
}

// NamesKubeconfig reports whether a command line of kubectl names its own kubeconfig.
func NamesKubeconfig(args []string) bool {
	for _, a := range args {
		if a == "--" {
			return false
		}
		if a == "--kubeconfig" || strings.HasPrefix(a, "--kubeconfig=") {
			return true
		}
	}
	return false
}

// Completes reports whether args are a question of the shell, how a line may go on, as cobra's
// scripts ask it.
func Completes(args []string) bool {
	return len(args) > 0 && (args[0] == "__complete" || args[0] == "__completeNoDesc")
}

// clusterless are the commands of kubectl that need no cluster.
var clusterless = []string{"completion", "help", "kustomize", "options", "plugin"}

// NeedsCluster reports whether a command line of kubectl, without its name, asks a cluster.
func NeedsCluster(args []string) bool {
	before := args
	if i := slices.Index(args, "--"); i >= 0 {
		before = args[:i]
	}
	if len(before) == 0 || Completes(before) || slices.Contains(clusterless, before[0]) || slices.Contains(before, "--help") || slices.Contains(before, "-h") {
		return false
	}
	client := slices.Contains(before, "--client") || slices.Contains(before, "--client=true")
	return !(slices.Contains(before, "version") && client)
}
