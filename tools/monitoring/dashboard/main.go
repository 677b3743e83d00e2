// Reads dashboards as Grafana's own schemas have them: an unknown field, kind of panel or query is an error.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/cog/plugins"
	"github.com/grafana/grafana-foundation-sdk/go/cog/variants"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
)

// The library answers an empty list of errors where there is none.
func orNone(err error) error {
	var all cog.BuildErrors
	if errors.As(err, &all) && len(all) == 0 {
		return nil
	}
	return err
}

func readDashboard(raw []byte) error {
	var whole dashboard.Dashboard
	if err := orNone(whole.UnmarshalJSONStrict(raw)); err != nil {
		return err
	}
	if err := orNone(whole.Validate()); err != nil {
		return err
	}
	var parts struct{ Panels []json.RawMessage }
	if err := json.Unmarshal(raw, &parts); err != nil {
		return err
	}
	for number, part := range parts.Panels {
		if err := readPanel(part); err != nil {
			return fmt.Errorf("panel %d: %w", number, err)
		}
	}
	return nil
}

// Once more by itself: of a dashboard the library keeps no panel, and does not look into all of it.
func readPanel(raw []byte) error {
	var panel dashboard.Panel
	if err := orNone(panel.UnmarshalJSONStrict(raw)); err != nil {
		return err
	}
	if _, known := cog.NewRuntime().ConfigForPanelcfgVariant(panel.Type); !known {
		return fmt.Errorf("there is no type %q", panel.Type)
	}
	for _, target := range panel.Targets {
		if _, unknown := target.(variants.UnknownDataquery); unknown {
			return errors.New("the type of a query's data source is unknown")
		}
	}
	var parts struct{ FieldConfig json.RawMessage }
	if err := json.Unmarshal(raw, &parts); err != nil {
		return err
	}
	var fields dashboard.FieldConfigSource
	if err := orNone(fields.UnmarshalJSONStrict(parts.FieldConfig)); err != nil {
		return err
	}
	return orNone(panel.Validate())
}

func main() {
	plugins.RegisterDefaultPlugins()
	for _, path := range os.Args[1:] {
		raw, err := os.ReadFile(path)
		if err == nil {
			err = readDashboard(raw)
		}
		if err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", path, err)
			os.Exit(1)
		}
	}
}
