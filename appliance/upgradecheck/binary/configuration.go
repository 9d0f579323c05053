package binary

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"

	"sigs.k8s.io/yaml"

	"kthwd/appliance/config"
)

// Configuration is what the new binary says of the configuration of this controller.
type Configuration struct {
	Problems []string
	Hints    []string
	Warnings []string
}

// CheckConfiguration has the new binary parse a configuration: the file, "" for none, and those of
// the settings that are flags. Relative paths in flags start from dir.
func (b Binary) CheckConfiguration(ctx context.Context, file string, settings []config.Value, dir string) (Configuration, error) {
	args, err := configurationArgs(file, settings)
	if err != nil {
		return Configuration{}, err
	}
	_, said, err := b.call(ctx, dir, args...)
	c := Configuration{Problems: messages(said, "error: "), Hints: messages(said, "hint: "), Warnings: messages(said, "warning: ")}
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || exit.ExitCode() < 0 || len(c.Problems) == 0) {
		return c, fmt.Errorf("%s config: %w", b.Path, err)
	}
	return c, nil
}

// configurationArgs is the command line that checks a configuration.
func configurationArgs(file string, settings []config.Value) ([]string, error) {
	args, role := []string{"config", "--config=" + file}, false
	for _, s := range settings {
		if s.Key == "role" && s.Text != "[]" {
			role = true
		}
		if s.Origin != config.OriginFlag || s.Key == "config" {
			continue
		}
		values, err := Words(s.Text)
		if err != nil {
			return nil, fmt.Errorf("--%s=%s: %w", s.Key, s.Text, err)
		}
		for _, v := range values {
			args = append(args, "--"+s.Key+"="+v)
		}
	}
	if !role {
		args = append(args, "--role="+config.RoleController)
	}
	return args, nil
}

// Words are the values of a setting, from its one line of YAML. An empty list is one empty value.
func Words(line string) ([]string, error) {
	var list []string
	if strings.HasPrefix(line, "[") {
		err := yaml.Unmarshal([]byte(line), &list)
		if len(list) == 0 {
			list = []string{""}
		}
		return list, err
	}
	var one string
	if strings.HasPrefix(line, `"`) || strings.HasPrefix(line, "'") {
		err := yaml.Unmarshal([]byte(line), &one)
		return []string{one}, err
	}
	return []string{line}, nil
}
