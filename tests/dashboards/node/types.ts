// The types that the parts of a dashboard are checked against. The types of @grafana/schema name
// enums; `Plain` turns these into the values that JSON has.
import type { Dashboard, DataQuery, GraphFieldConfig, Panel, RowPanel } from '@grafana/schema';
import type { Options as StatOptions } from '@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen';
import type { Options as TableOptions } from '@grafana/schema/dist/esm/raw/composable/table/panelcfg/x/TablePanelCfg_types.gen';
import type { Options as GraphOptions } from '@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen';

type Plain<T> = T extends string
  ? `${T}`
  : T extends number
    ? T | (`${T}` extends `${infer N extends number}` ? N : never)
    : T extends Array<infer Item>
      ? Array<Plain<Item>>
      : T extends object
        ? { [Key in keyof T]: Plain<T[Key]> }
        : T;

// @grafana/schema leaves the queries of a panel open. These are the keys of the Prometheus data source.
interface Query extends DataQuery {
  datasource: { type: 'prometheus'; uid: '${datasource}' };
  editorMode: 'code';
  exemplar?: boolean;
  expr: string;
  format?: 'table';
  instant: boolean;
  legendFormat: string;
  range: boolean;
}

type Of<Kind, Options> = Omit<Plain<Panel<Options>>, 'targets' | 'type'> & {
  description: string;
  targets: Query[];
  title: string;
  type: Kind;
};

export type Whole = Plain<Omit<Dashboard, 'panels'>>;
export type Row = Plain<RowPanel>;
export type Graph = Of<'timeseries', GraphOptions>;
export type Stat = Of<'stat', StatOptions>;
export type Table = Of<'table', TableOptions>;
// The type of a panel allows any key in `custom`; these two do not.
export type GraphCustom = Plain<GraphFieldConfig>;
export type TableCustom = { align: 'auto'; filterable: boolean; inspect: boolean };
