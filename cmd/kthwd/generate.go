package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"kthwd/appliance/config"
	"kthwd/appliance/pki"
	"kthwd/cmd/kthwd/cli"
)

// packaged has the settings in a package's configuration files: paths that its units provide.
var packaged = map[string]map[string]string{
	config.RoleController: {},
	config.RoleLB: {
		"upgrade-socket": "/run/kthwd-lb/upgrade.sock # no other user can take its place; made by the unit",
	},
}

// generateVerb serves packages and make install, so help hides it.
func (a *app) generateVerb() *cobra.Command {
	return &cobra.Command{
		Use:    "generate DIR",
		Short:  "Write the files of a package that are made from this program",
		Hidden: true,
		Args:   cli.WantArgs(1, 1, "DIR"),
		RunE: func(cmd *cobra.Command, args []string) error {
			files, err := generated(cmd.Root())
			if err != nil {
				return err
			}
			return writeTree(args[0], files)
		},
	}
}

// generated has the files by name: a configuration file for each role, the manual
// pages, the completions, and the list of kthwd's files in a data directory.
func generated(root *cobra.Command) (map[string][]byte, error) {
	files := map[string][]byte{}
	for role, set := range packaged {
		var b bytes.Buffer
		if err := config.Annotated(&b, role, set); err != nil {
			return nil, err
		}
		files[role+".yaml"] = b.Bytes()
	}
	for name, page := range manual(root) {
		files[filepath.Join("man", name)] = page
	}
	for shell, name := range map[string]string{"bash": "kthwd", "zsh": "_kthwd", "fish": "kthwd.fish"} {
		var b bytes.Buffer
		if err := writeCompletion(root, &b, shell); err != nil {
			return nil, err
		}
		files[filepath.Join("completion", name)] = b.Bytes()
	}
	files["data-files"] = []byte(strings.Join(pki.Layout{}.Files(), "\n") + "\n")
	return files, nil
}

func writeTree(dir string, files map[string][]byte) error {
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, text, 0o644); err != nil {
			return fmt.Errorf("write %s: %w", path, err)
		}
	}
	return nil
}
