package program

import (
	_ "embed"
	"regexp"
	"slices"
	"strings"
)

//go:embed guide.txt
var guideFile string

// guideSteps are the steps of the guide that the programs replace.
var guideSteps = map[string]string{
	Etcd:              `part 2, etcd.service`,
	APIServer:         `part 3, "Setting up the Kubernetes API Server": kube-apiserver.service`,
	ControllerManager: `part 3, "Setting up the Kubernetes Controller Manager": kube-controller-manager.service`,
	Scheduler:         `part 3, "Setting up the Kubernetes Scheduler": kube-scheduler.service and kube-scheduler.yaml`,
}

// GuideStep returns the step of the guide that sets up the program.
func GuideStep(name string) string { return guideSteps[name] }

// renamed maps flags of the guide to today's names.
var renamed = map[string]map[string]string{
	APIServer:         {"experimental-encryption-provider-config": "encryption-provider-config"},
	ControllerManager: {"address": "bind-address"},
}

// guideFiles are settings of the guide's kube-scheduler.yaml for which kthwd has a flag.
var guideFiles = map[string][]string{Scheduler: {"kubeconfig", "leader-elect"}}

// GuideFlag is a flag in one of the guide's unit files.
type GuideFlag struct {
	Text  string // as the guide writes it, such as "--address=0.0.0.0"
	Key   string // today's name of the flag, without dashes
	Value string // with the guide's shell variables, such as "${INTERNAL_IP}"; "true" for a bare flag
}

// GuideFlags returns the flags of a program in the guide, in its order.
func GuideFlags(name string) (all []GuideFlag) {
	of := ""
	for line := range strings.Lines(guideFile) {
		line = strings.TrimSpace(line)
		text, isFlag := strings.CutPrefix(line, "--")
		switch {
		case isFlag && of == name:
			key, value, found := strings.Cut(text, "=")
			if !found {
				value = "true"
			}
			if today, is := renamed[name][key]; is {
				key = today
			}
			all = append(all, GuideFlag{Text: line, Key: key, Value: value})
		case !isFlag && line != "" && !strings.HasPrefix(line, "#"):
			of = line
		}
	}
	return all
}

// InGuideFile reports whether the guide sets the flag in a file that it gives the program.
func InGuideFile(name, key string) bool { return slices.Contains(guideFiles[name], key) }

// variable matches a shell variable of the guide, quoted for a regular expression.
var variable = regexp.MustCompile(`\\\$\\\{\w+\\\}|\\\$\w+`)

// Same reports whether value is the guide's, whatever its shell variables stand for.
func (g GuideFlag) Same(value string) bool {
	pattern := variable.ReplaceAllString(regexp.QuoteMeta(g.Value), `[][\w.:-]+`)
	same, err := regexp.MatchString("^"+pattern+"$", value)
	return err == nil && same
}
